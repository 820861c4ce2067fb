// The two ends of a step on CUDA: unpacking its message, and turning logits into tokens.
#include <cuda_runtime.h>

#include <vector>

#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "core/step_message.h"
#include "sample/logprobs.h"
#include "sample/sample.h"
#include "step/step.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

using OptionalView = std::optional<TensorView>;
using Views = std::vector<TensorView>;

int as_int(int64_t x) { return static_cast<int>(x); }

// All int32. buffers: the twelve tensors of StepBuffers in their order. page_table:
// [max_running + 1, max_pages_per_seq]. last_tokens: [max_running + 1].
void prepare_step(const TensorView& message, const TensorView& page_table,
                  const TensorView& last_tokens, const TensorView& slot_tokens,
                  const Views& buffers, int padded_seqs, int padded_tokens, bool pdl,
                  uint64_t stream) {
  expect(buffers.size() == 12, "buffers must be the twelve tensors of StepBuffers");
  expect(page_table.ndim == 2, "page_table must be [max_running + 1, max_pages_per_seq]");
  const auto buffer = [&](size_t i, const char* name, int64_t least) {
    return int_data(buffers[i], name, least);
  };
  cuda::PrepareStepParams p{};
  p.message = int_data(message, "message", msg::kHeaderWords);
  p.page_table = int_data(page_table, "page_table", 0);
  p.last_tokens = int_data(last_tokens, "last_tokens", page_table.dim(0));
  p.slot_tokens = int_data(slot_tokens, "slot_tokens", 0);
  p.token_ids = buffer(0, "token_ids", padded_tokens);
  p.positions = buffer(1, "positions", padded_tokens);
  p.slots = buffer(2, "slots", padded_tokens);
  p.token_seq = buffer(3, "token_seq", padded_tokens);
  p.rows = buffer(4, "rows", padded_seqs);
  p.seq_lens = buffer(5, "seq_lens", padded_seqs);
  p.prompt_lens = buffer(6, "prompt_lens", padded_seqs);
  p.q_indptr = buffer(7, "q_indptr", int64_t{padded_seqs} + 1);
  p.logit_idx = buffer(8, "logit_idx", padded_seqs);
  p.logit_targets = buffer(9, "logit_targets", buffers[8].numel());
  p.sampling = buffer(10, "sampling", int64_t{padded_seqs} * msg::kSamplingWords);
  p.sample_rows = buffer(11, "sample_rows", padded_seqs);
  expect(is_aligned16(message) && is_aligned16(buffers[10]),
         "message and sampling must be 16-byte aligned");
  p.max_pages_per_seq = as_int(page_table.dim(1));
  p.scratch_row = as_int(page_table.dim(0)) - 1;
  p.padded_seqs = padded_seqs;
  p.padded_tokens = padded_tokens;
  p.max_logits = as_int(buffers[8].numel());
  p.pdl = pdl;
  check_cuda(cuda::prepare_step(p, as_stream(stream)), "prepare_step");
}

// table: [num_rows, width], rows may be strided. ids: int32 [T]. out: [T, width] contiguous.
// Ids outside [first_id, first_id + num_rows) give zeros.
void gather_rows(const TensorView& table, const TensorView& ids, const TensorView& out,
                 int first_id, float scale, bool pdl, uint64_t stream) {
  expect(table.ndim == 2 && out.ndim == 2 && out.dim(1) == table.dim(1),
         "out must be [T, width] for table [num_rows, width]");
  expect(table.dim(1) % 8 == 0, "width must be a multiple of 8");
  expect_rows(table, "table");
  expect_arg(out.dtype == table.dtype && out.is_contiguous() && is_aligned16(out), "out",
             "must be contiguous with the dtype of table");
  expect(ids.numel() == out.dim(0), "out must have a row per id");
  cuda::GatherRowsParams p{};
  p.table = table.data;
  p.ids = int_data(ids, "ids", 0);
  p.out = out.data;
  p.table_stride = table.step(0);
  p.num_rows = as_int(out.dim(0));
  p.width = as_int(out.dim(1));
  p.first_id = first_id;
  p.num_table_rows = as_int(table.dim(0));
  p.scale = scale;
  p.dtype = as_dtype(table, "table");
  p.pdl = pdl;
  check_cuda(cuda::gather_rows(p, as_stream(stream)), "gather_rows");
}

void expect_logits(const TensorView& logits) {
  expect(logits.device == Device::kCuda && logits.ndim == 2 && logits.step(1) == 1,
         "logits must be [S, V] on the device with contiguous rows");
}

// logits: [S, V]. buffers: the twelve tensors of StepBuffers in their order. page_table,
// slot_tokens, last_tokens as in prepare_step. tokens: int32 [S]. bitmask: int32 [R, ceil(V / 32)]
// or None.
void sample(const TensorView& logits, const TensorView& message, const Views& buffers,
            const TensorView& page_table, const TensorView& slot_tokens,
            const TensorView& last_tokens, const TensorView& tokens, const OptionalView& bitmask,
            int page_size, int flags, bool pdl, uint64_t stream) {
  expect_logits(logits);
  expect(buffers.size() == 12, "buffers must be the twelve tensors of StepBuffers");
  expect(logits.dim(1) > 0 && logits.dim(1) <= 262144, "V must be 1 to 262144");
  const int64_t rows = logits.dim(0);
  cuda::SampleParams p{};
  p.logits = logits.data;
  p.message = int_data(message, "message", msg::kHeaderWords);
  p.sampling = int_data(buffers[10], "sampling", rows * msg::kSamplingWords);
  p.sample_rows = int_data(buffers[11], "sample_rows", rows);
  p.rows = int_data(buffers[4], "rows", 0);
  p.seq_lens = int_data(buffers[5], "seq_lens", 0);
  p.prompt_lens = int_data(buffers[6], "prompt_lens", 0);
  p.page_table = int_data(page_table, "page_table", 0);
  p.slot_tokens = int_data(slot_tokens, "slot_tokens", 0);
  p.last_tokens = int_data(last_tokens, "last_tokens", page_table.dim(0));
  p.tokens = int_data(tokens, "tokens", rows);
  p.logits_stride = logits.step(0);
  p.num_rows = as_int(rows);
  p.vocab = as_int(logits.dim(1));
  p.max_pages_per_seq = as_int(page_table.dim(1));
  p.page_size = page_size;
  if (bitmask) {
    expect(bitmask->ndim == 2 && bitmask->dim(1) * 32 >= logits.dim(1),
           "bitmask must be [R, ceil(V / 32)]");
    p.bitmask = int_data(*bitmask, "bitmask", 0);
    p.bitmask_words = as_int(bitmask->dim(1));
  }
  p.flags = flags;
  p.dtype = as_dtype(logits, "logits");
  p.pdl = pdl;
  check_cuda(cuda::sample(p, as_stream(stream)), "sample");
}

// logits: [S, V]. tokens: int32 [S] with token_logprobs float32 [S]. top_logprobs float32 [S, k]
// with top_tokens int32 [S, k].
void logprobs(const TensorView& logits, const OptionalView& tokens,
              const OptionalView& token_logprobs, const OptionalView& top_logprobs,
              const OptionalView& top_tokens, bool pdl, uint64_t stream) {
  expect_logits(logits);
  expect(tokens.has_value() == token_logprobs.has_value() &&
             top_logprobs.has_value() == top_tokens.has_value(),
         "tokens and token_logprobs, top_logprobs and top_tokens come together");
  const int64_t rows = logits.dim(0);
  cuda::LogprobsParams p{};
  p.logits = logits.data;
  if (tokens) {
    p.tokens = int_data(*tokens, "tokens", rows);
    p.token_logprobs = float_data(*token_logprobs, "token_logprobs", rows);
  }
  if (top_tokens) {
    expect(top_logprobs->ndim == 2 && top_tokens->ndim == 2, "top tensors must be [S, k]");
    const int64_t top = top_tokens->dim(1);
    expect(top <= cuda::kMaxTopLogprobs && top <= logits.dim(1), "k must be at most 128 and V");
    p.top_tokens = int_data(*top_tokens, "top_tokens", rows * top);
    p.top_logprobs = float_data(*top_logprobs, "top_logprobs", rows * top);
    p.top = as_int(top);
  }
  p.logits_stride = logits.step(0);
  p.num_rows = as_int(rows);
  p.vocab = as_int(logits.dim(1));
  p.dtype = as_dtype(logits, "logits");
  p.pdl = pdl;
  check_cuda(cuda::logprobs(p, as_stream(stream)), "logprobs");
}

}  // namespace

void bind_cuda_step(py::module_& m) {
  m.def("cuda_prepare_step", &prepare_step, "message"_a, "page_table"_a, "last_tokens"_a,
        "slot_tokens"_a, "buffers"_a, "padded_seqs"_a, "padded_tokens"_a, "pdl"_a, "stream"_a);
  m.def("cuda_gather_rows", &gather_rows, "table"_a, "ids"_a, "out"_a, "first_id"_a, "scale"_a,
        "pdl"_a, "stream"_a);
  m.def("cuda_sample", &sample, "logits"_a, "message"_a, "buffers"_a, "page_table"_a,
        "slot_tokens"_a, "last_tokens"_a, "tokens"_a, "bitmask"_a, "page_size"_a, "flags"_a,
        "pdl"_a, "stream"_a);
  m.def("cuda_logprobs", &logprobs, "logits"_a, "tokens"_a, "token_logprobs"_a, "top_logprobs"_a,
        "top_tokens"_a, "pdl"_a, "stream"_a);
}

}  // namespace srt::bind
