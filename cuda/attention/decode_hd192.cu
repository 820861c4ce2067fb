// Decode attention for head_dim 192.
#include "attention/decode_launch.cuh"

namespace srt::cuda::decode {

Entry entry_hd192(KvKind kind, int head_tiles) { return pick_kind<192>(kind, head_tiles); }

}  // namespace srt::cuda::decode
