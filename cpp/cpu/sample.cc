// The scalar part of sampling: what few tokens of a row undergo. Passes over the vocabulary are in
// sample_kernel.h.
#include "cpu/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "core/step_message.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace srt::cpu {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kMostTop = 12.0F;  // e^-12: top-p looks at likelier tokens first

float as_float(int32_t word) { return std::bit_cast<float>(word); }

bool in_vocab(int32_t id, int64_t vocab) { return id >= 0 && id < vocab; }

void add_biases(const SampleParams& p, const int32_t* record, float* x) {
  const int32_t* pair = p.extra + record[msg::kExtraOffset] + record[msg::kNumStopIds];
  for (int32_t i = 0; i < record[msg::kNumBiases]; ++i, pair += 2) {
    if (in_vocab(pair[0], p.vocab)) x[pair[0]] += as_float(pair[1]);
  }
}

void mask_stops(const SampleParams& p, const int32_t* record, float* x) {
  const int32_t* ids = p.extra + record[msg::kExtraOffset];
  for (int32_t i = 0; i < record[msg::kNumStopIds]; ++i) {
    if (in_vocab(ids[i], p.vocab)) x[ids[i]] = kMinusInf;
  }
}

// counts: [vocab] of work space. A token's word is 1 for being seen plus 2 per output token.
void penalize(const SampleParams& p, const int32_t* record, float* x, int32_t* counts) {
  const int32_t seq = record[msg::kSampleSeq];
  const int32_t* pages = p.page_table + p.seq_rows[seq] * p.page_stride;
  const auto token_at = [&](int64_t pos) {
    return p.slot_tokens[pages[pos / p.page_size] * p.page_size + pos % p.page_size];
  };
  std::memset(counts, 0, static_cast<size_t>(p.vocab) * sizeof(int32_t));
  const int64_t len = p.seq_lens[seq];
  for (int64_t pos = 0; pos < len; ++pos) {
    const int32_t id = token_at(pos);
    if (in_vocab(id, p.vocab)) counts[id] = (counts[id] | 1) + (pos >= p.prompt_lens[seq] ? 2 : 0);
  }
  const float frequency = as_float(record[msg::kFrequency]);
  const float presence = as_float(record[msg::kPresence]);
  const float repetition = as_float(record[msg::kRepetition]);
  for (int64_t pos = 0; pos < len; ++pos) {
    const int32_t id = token_at(pos);
    if (!in_vocab(id, p.vocab) || counts[id] == 0) continue;
    const int32_t in_output = counts[id] / 2;
    counts[id] = 0;  // once per token
    const float repeated = x[id] > 0.0F ? x[id] / repetition : x[id] * repetition;
    const float once = in_output > 0 ? presence : 0.0F;
    x[id] = repeated - frequency * static_cast<float>(in_output) - once;
  }
}

void apply_bitmask(const int32_t* words, float* x, int64_t vocab) {
  for (int64_t i = 0; i < vocab; ++i) {
    if ((static_cast<uint32_t>(words[i / 32]) >> (i % 32) & 1U) == 0) x[i] = kMinusInf;
  }
}

// The k-th largest of x. O(vocab). work: [vocab].
float kth_largest(const float* x, int64_t vocab, int64_t k, float* work) {
  std::copy(x, x + vocab, work);
  std::nth_element(work, work + k - 1, work + vocab, std::greater<>());
  return work[k - 1];
}

// The least value that top-p keeps of the values >= floor; weights are e^(x - most).
// O(vocab + n log n) in the n tokens looked at. work: [vocab].
float top_p_floor(const float* x, const float* weights, int64_t vocab, float floor, float most,
                  float top_p, float* work) {
  double mass = 0.0;
  for (int64_t i = 0; i < vocab; ++i) mass += x[i] >= floor ? weights[i] : 0.0F;
  const double wanted = static_cast<double>(top_p) * mass;
  for (const float from : {most - kMostTop, kMinusInf}) {
    const float low = std::max(from, floor);
    float* end = std::copy_if(x, x + vocab, work, [low](float value) { return value >= low; });
    std::sort(work, end, std::greater<>());
    double before = 0.0;
    for (float* value = work; value != end;) {
      if (before >= wanted) return value[-1];
      float* next = value;  // a run of equals lives or dies together
      while (next != end && *next == *value) ++next;
      before += std::exp(static_cast<double>(*value - most)) * static_cast<double>(next - value);
      value = next;
    }
    if (before >= wanted || low == floor) return end == work ? floor : end[-1];
  }
  return floor;
}

// Sets the weights of what the filters drop to zero.
void filter(const SampleParams& p, const int32_t* record, const float* x, float most,
            float* weights, float* work) {
  float floor = kMinusInf;
  const int64_t top_k = record[msg::kTopK];
  if (top_k > 0 && top_k < p.vocab) floor = kth_largest(x, p.vocab, top_k, work);
  const float top_p = as_float(record[msg::kTopP]);
  if (top_p < 1.0F) floor = top_p_floor(x, weights, p.vocab, floor, most, top_p, work);
  const float min_p = as_float(record[msg::kMinP]);
  for (int64_t i = 0; i < p.vocab; ++i) {
    if (x[i] < floor || weights[i] < min_p) weights[i] = 0.0F;
  }
}

// work: [3 * vocab].
int32_t sample_row(const SampleParams& p, int64_t row, float* work) {
  const Kernels& k = kernels();
  const int32_t* record = p.records + row * msg::kSamplingWords;
  const int32_t flags = record[msg::kSampleFlags];
  const auto* logits = static_cast<const char*>(p.logits) +
                       row * p.logits_stride * static_cast<int64_t>(dtype_bytes(p.dtype));
  constexpr int32_t kChanged = msg::kPenalties | msg::kBiased | msg::kMaskStops | msg::kMasked;
  if ((flags & msg::kGreedy) != 0 && (flags & kChanged) == 0) {
    return k.argmax(p.dtype, logits, p.vocab);
  }
  float* x = work;
  float* weights = work + p.vocab;
  float* spare = weights + p.vocab;
  k.to_float(p.dtype, logits, 1, p.vocab, p.vocab, x);
  if ((flags & msg::kBiased) != 0) add_biases(p, record, x);
  if ((flags & msg::kPenalties) != 0) penalize(p, record, x, reinterpret_cast<int32_t*>(spare));
  if ((flags & msg::kMaskStops) != 0) mask_stops(p, record, x);
  if ((flags & msg::kMasked) != 0 && p.bitmask != nullptr) {
    apply_bitmask(p.bitmask + record[msg::kBitmaskRow] * p.bitmask_stride, x, p.vocab);
  }
  if ((flags & msg::kGreedy) != 0) return k.argmax(DType::kF32, x, p.vocab);

  const float most = k.temper(x, p.vocab, as_float(record[msg::kTemperature]), weights);
  if ((flags & msg::kFiltered) != 0) filter(p, record, x, most, weights, spare);
  return k.race(weights, p.vocab, static_cast<uint32_t>(record[msg::kSeedLo]),
                static_cast<uint32_t>(record[msg::kSeedHi]),
                static_cast<uint32_t>(record[msg::kSamplePosition]));
}

}  // namespace

void sample(const SampleParams& p) {
  parallel_items(p.rows, p.rows * p.vocab, [&](int64_t row) {
    float* work = scratch(Scratch::kWork, static_cast<size_t>(3 * p.vocab));
    p.tokens[row] = sample_row(p, row, work);
  });
  for (int64_t row = 0; row < p.rows; ++row) p.last_tokens[p.sample_rows[row]] = p.tokens[row];
}

void token_logprobs(const LogprobParams& p) {
  const auto kernel = kernels().token_logprobs;
  parallel_ranges(p.rows, p.rows * p.vocab, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

}  // namespace srt::cpu
