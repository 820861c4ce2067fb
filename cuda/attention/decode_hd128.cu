// Decode attention for head_dim 128.
#include "attention/decode_launch.cuh"

namespace srt::cuda::decode {

Entry entry_hd128(KvKind kind, int head_tiles) { return pick_kind<128>(kind, head_tiles); }

}  // namespace srt::cuda::decode
