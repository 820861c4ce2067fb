// Decode attention for head_dim 256.
#include "attention/decode_launch.cuh"

namespace srt::cuda::decode {

Entry entry_hd256(KvKind kind, int head_tiles) { return pick_kind<256>(kind, head_tiles); }

}  // namespace srt::cuda::decode
