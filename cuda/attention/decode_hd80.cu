// Decode attention for head_dim 80.
#include "attention/decode_launch.cuh"

namespace srt::cuda::decode {

Entry entry_hd80(KvKind kind, int head_tiles) { return pick_kind<80>(kind, head_tiles); }

}  // namespace srt::cuda::decode
