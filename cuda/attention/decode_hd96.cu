// Decode attention for head_dim 96.
#include "attention/decode_launch.cuh"

namespace srt::cuda::decode {

Entry entry_hd96(KvKind kind, int head_tiles) { return pick_kind<96>(kind, head_tiles); }

}  // namespace srt::cuda::decode
