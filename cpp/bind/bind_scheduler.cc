// srt::Scheduler in Python: arrays in as buffers, plans and events out as numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/dlpack.h"
#include "core/step_message.h"
#include "sched/scheduler.h"

namespace srt::bind {

namespace py = pybind11;
using py::literals::operator""_a;

namespace {

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::array_t<uint8_t> to_array(const std::vector<FinishReason>& values) {
  static_assert(sizeof(FinishReason) == 1);
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(values.size()),
                              reinterpret_cast<const uint8_t*>(values.data()));
}

// Tokens arrive as little-endian int32 bytes, or as a contiguous int32 array.
std::vector<TokenId> to_tokens(const py::buffer& buffer) {
  const py::buffer_info info = buffer.request();
  const bool is_bytes = info.itemsize == 1;
  const bool is_int32 = info.itemsize == 4 && (info.format == "i" || info.format == "l");
  expect(is_bytes || is_int32, "tokens must be int32, or bytes of little-endian int32");
  expect(info.ndim == 1 && (info.shape[0] < 2 || info.strides[0] == info.itemsize),
         "tokens must be one-dimensional and contiguous");
  const auto num_bytes = static_cast<size_t>(info.size * info.itemsize);
  expect(num_bytes % sizeof(TokenId) == 0, "tokens as bytes must be whole int32 words");
  std::vector<TokenId> tokens(num_bytes / sizeof(TokenId));
  if (num_bytes > 0) std::memcpy(tokens.data(), info.ptr, num_bytes);
  return tokens;
}

// A contiguous one-dimensional int32 tensor in host memory (pinned or not).
std::span<int32_t> to_words(const TensorView& view, const char* why) {
  expect(view.dtype == DType::kI32 && view.device == Device::kCpu && view.ndim == 1 &&
             (view.numel() == 0 || view.is_contiguous()),
         why);
  return {view.ptr<int32_t>(), static_cast<size_t>(view.numel())};
}

// NOLINTNEXTLINE(readability-function-size): one keyword each, as the contract lists them.
void add(Scheduler& self, SeqId seq_id, const py::buffer& tokens, int32_t max_new_tokens,
         int32_t min_new_tokens, float temperature, float top_p, int32_t top_k, float min_p,
         float frequency_penalty, float presence_penalty, float repetition_penalty, uint64_t seed,
         std::vector<TokenId> stop_token_ids, std::vector<std::pair<TokenId, float>> logit_bias,
         bool return_logprob, int32_t logprob_start, int32_t top_logprobs, int32_t priority,
         std::string ns, bool sync) {
  NewSequence seq;
  seq.id = seq_id;
  seq.tokens = to_tokens(tokens);
  seq.max_new_tokens = max_new_tokens;
  seq.min_new_tokens = min_new_tokens;
  seq.sampling = {.temperature = temperature,
                  .top_p = top_p,
                  .top_k = top_k,
                  .min_p = min_p,
                  .frequency_penalty = frequency_penalty,
                  .presence_penalty = presence_penalty,
                  .repetition_penalty = repetition_penalty,
                  .seed = seed,
                  .stop_token_ids = std::move(stop_token_ids),
                  .logit_bias = std::move(logit_bias),
                  .return_logprob = return_logprob,
                  .logprob_start = logprob_start,
                  .top_logprobs = top_logprobs};
  seq.priority = priority;
  seq.ns = std::move(ns);
  seq.sync = sync;
  self.add(std::move(seq));
}

std::optional<StepPlan> schedule(Scheduler& self, const TensorView& message) {
  return self.schedule(to_words(message, "message must be contiguous int32 [n] in host memory"));
}

void commit(Scheduler& self, StepId step, const TensorView& tokens) {
  self.commit(step, to_words(tokens, "tokens must be contiguous int32 [n] in host memory"));
}

void bind_config(py::module_& m) {
  py::class_<SchedulerConfig>(m, "SchedulerConfig")
      .def(py::init([](int32_t num_pages, int32_t page_size, int32_t max_running,
                       int32_t max_seq_len, int32_t max_step_tokens, int32_t max_prefill_tokens,
                       const std::string& policy, bool enable_radix, bool enable_mixed,
                       double init_new_token_ratio, double min_new_token_ratio,
                       double new_token_ratio_decay, int32_t clip_max_new_tokens,
                       uint64_t random_seed, bool self_check, int32_t work_words,
                       int32_t max_step_logits, int32_t max_extra_words,
                       int32_t shared_prefix_pages, bool whole_prompts, int32_t max_mixed_tokens) {
             SchedulerConfig config{.num_pages = num_pages,
                                    .page_size = page_size,
                                    .max_running = max_running,
                                    .max_seq_len = max_seq_len,
                                    .max_step_tokens = max_step_tokens,
                                    .max_prefill_tokens = max_prefill_tokens,
                                    .max_mixed_tokens = max_mixed_tokens,
                                    .policy = parse_policy(policy),
                                    .enable_radix = enable_radix,
                                    .enable_mixed = enable_mixed,
                                    .init_new_token_ratio = init_new_token_ratio,
                                    .min_new_token_ratio = min_new_token_ratio,
                                    .new_token_ratio_decay = new_token_ratio_decay,
                                    .whole_prompts = whole_prompts,
                                    .clip_max_new_tokens = clip_max_new_tokens,
                                    .random_seed = random_seed,
                                    .self_check = self_check,
                                    .work_words = work_words,
                                    .max_step_logits = max_step_logits,
                                    .max_extra_words = max_extra_words,
                                    .shared_prefix_pages = shared_prefix_pages};
             config.validate();
             return config;
           }),
           py::kw_only(), "num_pages"_a, "page_size"_a, "max_running"_a, "max_seq_len"_a,
           "max_step_tokens"_a, "max_prefill_tokens"_a, "policy"_a = "lpm", "enable_radix"_a = true,
           "enable_mixed"_a = true, "init_new_token_ratio"_a = 0.7, "min_new_token_ratio"_a = 0.1,
           "new_token_ratio_decay"_a = 0.001, "clip_max_new_tokens"_a = 4096, "random_seed"_a = 0,
           "self_check"_a = false, "work_words"_a = 0, "max_step_logits"_a = 0,
           "max_extra_words"_a = 1024, "shared_prefix_pages"_a = 0, "whole_prompts"_a = false,
           "max_mixed_tokens"_a = 0)
      .def_readonly("num_pages", &SchedulerConfig::num_pages)
      .def_readonly("page_size", &SchedulerConfig::page_size)
      .def_readonly("max_running", &SchedulerConfig::max_running)
      .def_readonly("max_seq_len", &SchedulerConfig::max_seq_len)
      .def_readonly("max_step_tokens", &SchedulerConfig::max_step_tokens)
      .def_property_readonly("max_pages_per_seq", &SchedulerConfig::max_pages_per_seq)
      .def_property_readonly("max_tokens", &SchedulerConfig::max_tokens);
  m.def(
      "message_words", [](const SchedulerConfig& config) { return config.message_words(); },
      "config"_a);
}

void bind_plan(py::module_& m) {
  py::class_<StepPlan>(m, "StepPlan")
      .def_readonly("step", &StepPlan::step)
      .def_readonly("num_bytes", &StepPlan::num_bytes)
      .def_readonly("num_seqs", &StepPlan::num_seqs)
      .def_readonly("num_decode", &StepPlan::num_decode)
      .def_readonly("num_tokens", &StepPlan::num_tokens)
      .def_readonly("num_samples", &StepPlan::num_samples)
      .def_readonly("num_logits", &StepPlan::num_logits)
      .def_readonly("num_masked", &StepPlan::num_masked)
      .def_readonly("num_drafts", &StepPlan::num_drafts)
      .def_property_readonly("is_decode_only", &StepPlan::is_decode_only)
      .def_readonly("max_q_len", &StepPlan::max_q_len)
      .def_readonly("max_seq_len", &StepPlan::max_seq_len)
      .def_readonly("any_sampling_flags", &StepPlan::any_sampling_flags)
      .def_readonly("all_greedy", &StepPlan::all_greedy)
      .def_readonly("max_top_logprobs", &StepPlan::max_top_logprobs)
      .def_readonly("num_new_seqs", &StepPlan::num_new_seqs)
      .def_readonly("num_cached_tokens", &StepPlan::num_cached_tokens)
      .def_readonly("num_extend_tokens", &StepPlan::num_extend_tokens)
      .def_readonly("num_retracted", &StepPlan::num_retracted)
      .def_property_readonly("sample_seq_ids",
                             [](const StepPlan& p) { return to_array(p.sample_seq_ids); })
      .def_property_readonly("logit_seq_ids",
                             [](const StepPlan& p) { return to_array(p.logit_seq_ids); })
      .def_property_readonly("logit_positions",
                             [](const StepPlan& p) { return to_array(p.logit_positions); })
      .def_property_readonly("prompt_end_seq_ids",
                             [](const StepPlan& p) { return to_array(p.prompt_end_seq_ids); })
      .def_property_readonly("prompt_end_seqs",
                             [](const StepPlan& p) { return to_array(p.prompt_end_seqs); })
      .def_readonly("num_prefix_groups", &StepPlan::num_prefix_groups)
      .def_property_readonly("prefix_groups",
                             [](const StepPlan& p) { return to_array(p.prefix_groups); })
      .def_property_readonly("prefix_pages",
                             [](const StepPlan& p) { return to_array(p.prefix_pages); });
}

void bind_events(py::module_& m) {
  py::class_<Events>(m, "Events")
      .def("__len__", [](const Events& e) { return e.seq_ids.size(); })
      .def_property_readonly("num_events", [](const Events& e) { return e.seq_ids.size(); })
      .def_property_readonly("num_finished",
                             [](const Events& e) {
                               return e.finish.size() -
                                      static_cast<size_t>(std::count(
                                          e.finish.begin(), e.finish.end(), FinishReason::kNone));
                             })
      .def_property_readonly("seq_ids", [](const Events& e) { return to_array(e.seq_ids); })
      .def_property_readonly("tokens", [](const Events& e) { return to_array(e.tokens); })
      .def_property_readonly("finish", [](const Events& e) { return to_array(e.finish); })
      .def_property_readonly("cached_tokens",
                             [](const Events& e) { return to_array(e.cached_tokens); })
      .def_property_readonly("sample_idx", [](const Events& e) { return to_array(e.sample_idx); })
      .def_property_readonly("queued_us", [](const Events& e) { return to_array(e.queued_us); });
}

void bind_trace(py::module_& m) {
  py::class_<Trace>(m, "Trace")
      .def_readonly("added_us", &Trace::added_us)
      .def_readonly("admitted_us", &Trace::admitted_us)
      .def_readonly("first_token_us", &Trace::first_token_us)
      .def_readonly("ended_us", &Trace::ended_us)
      .def_readonly("retracted_us", &Trace::retracted_us)
      .def_readonly("requeued_for_us", &Trace::requeued_for_us)
      .def_readonly("num_prompt_tokens", &Trace::num_prompt_tokens)
      .def_readonly("num_cached_tokens", &Trace::num_cached_tokens)
      .def_readonly("num_output_tokens", &Trace::num_output_tokens)
      .def_readonly("num_chunks", &Trace::num_chunks)
      .def_readonly("num_extend_tokens", &Trace::num_extend_tokens)
      .def_readonly("num_retractions", &Trace::num_retractions)
      .def_readonly("num_steps", &Trace::num_steps)
      .def_readonly("sum_batch", &Trace::sum_batch)
      .def_readonly("max_batch", &Trace::max_batch)
      .def_property_readonly("finish", [](const Trace& t) { return static_cast<int>(t.finish); });
}

void bind_stats(py::module_& m) {
  const auto tokens = [](int32_t SchedulerStats::* pages) {
    return [pages](const SchedulerStats& s) { return int64_t{s.*pages} * s.page_size; };
  };
  py::class_<SchedulerStats>(m, "SchedulerStats")
      .def_readonly("num_running", &SchedulerStats::num_running)
      .def_readonly("num_waiting", &SchedulerStats::num_waiting)
      .def_readonly("num_in_flight", &SchedulerStats::num_in_flight)
      .def_readonly("num_total_pages", &SchedulerStats::num_total_pages)
      .def_readonly("num_free_pages", &SchedulerStats::num_free_pages)
      .def_readonly("num_cached_pages", &SchedulerStats::num_cached_pages)
      .def_readonly("num_evictable_pages", &SchedulerStats::num_evictable_pages)
      .def_readonly("num_used_pages", &SchedulerStats::num_used_pages)
      .def_property_readonly("num_total_tokens", tokens(&SchedulerStats::num_total_pages))
      .def_property_readonly("num_free_tokens", tokens(&SchedulerStats::num_free_pages))
      .def_property_readonly("num_cached_tokens", tokens(&SchedulerStats::num_cached_pages))
      .def_property_readonly("num_used_tokens", tokens(&SchedulerStats::num_used_pages))
      .def_readonly("num_evicted_pages", &SchedulerStats::num_evicted_pages)
      .def_readonly("num_retracted", &SchedulerStats::num_retracted)
      .def_readonly("num_drafts", &SchedulerStats::num_drafts)
      .def_readonly("num_right_drafts", &SchedulerStats::num_right_drafts)
      .def_readonly("num_prompt_tokens", &SchedulerStats::num_prompt_tokens)
      .def_readonly("num_prompt_cached_tokens", &SchedulerStats::num_prompt_cached_tokens)
      .def_readonly("new_token_ratio", &SchedulerStats::new_token_ratio);
}

}  // namespace

void bind_scheduler(py::module_& m) {
  m.attr("MAX_DRAFTS") = msg::kMaxDrafts;
  bind_config(m);
  bind_plan(m);
  bind_events(m);
  bind_trace(m);
  bind_stats(m);
  using release_gil = py::call_guard<py::gil_scoped_release>;
  py::class_<Scheduler>(m, "Scheduler")
      .def(py::init<const SchedulerConfig&>(), "config"_a)
      .def("add", &add, "seq_id"_a, "tokens"_a, py::kw_only(), "max_new_tokens"_a,
           "min_new_tokens"_a = 0, "temperature"_a = 1.0F, "top_p"_a = 1.0F, "top_k"_a = -1,
           "min_p"_a = 0.0F, "frequency_penalty"_a = 0.0F, "presence_penalty"_a = 0.0F,
           "repetition_penalty"_a = 1.0F, "seed"_a = 0, "stop_token_ids"_a = std::vector<TokenId>{},
           "logit_bias"_a = std::vector<std::pair<TokenId, float>>{}, "return_logprob"_a = false,
           "logprob_start"_a = -1, "top_logprobs"_a = 0, "priority"_a = 0, "namespace"_a = "",
           "sync"_a = false)
      .def("abort", &Scheduler::abort, "seq_id"_a)
      .def("draft", &Scheduler::draft, "seq_id"_a, "tokens"_a)
      .def("schedule", &schedule, "message"_a, release_gil())
      .def("commit", &commit, "step"_a, "tokens"_a, release_gil())
      .def("drain_events", &Scheduler::drain_events)
      .def("flush", &Scheduler::flush, release_gil())
      .def("stats", &Scheduler::stats)
      .def("tell_time", &Scheduler::tell_time, "now_us"_a)
      .def("trace", &Scheduler::trace, "seq_id"_a)
      .def("row_of", &Scheduler::row_of, "seq_id"_a)
      .def("check_invariants", &Scheduler::check_invariants, release_gil());
}

}  // namespace srt::bind
