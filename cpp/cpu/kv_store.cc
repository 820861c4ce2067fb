#include "cpu/kv_store.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace srt::cpu {

void kv_store(const KvStoreParams& p) {
  const auto kernel = kernels().kv_store;
  const int64_t elements = p.tokens * (p.q_heads + 2 * p.kv_heads) * p.head_dim;
  parallel_ranges(p.tokens, elements, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

}  // namespace srt::cpu
