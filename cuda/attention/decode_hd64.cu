// Decode attention for head_dim 64.
#include "attention/decode_launch.cuh"

namespace srt::cuda::decode {

Entry entry_hd64(KvKind kind, int head_tiles) { return pick_kind<64>(kind, head_tiles); }

}  // namespace srt::cuda::decode
