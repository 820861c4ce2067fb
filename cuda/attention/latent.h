// Paged attention over MLA's latent: one row of 512 + 64 values a token serves all query heads as
// key, and its first 512 as value.
#pragma once

#include "attention/decode.h"
#include "attention/extend.h"

namespace srt::cuda {

constexpr int kLatentDim = 576;
constexpr int kLatentValue = 512;
constexpr int kLatentTileRows = 64;  // query heads, times tokens where those are few

// How the query heads are cut into blocks.
struct LatentBlocks {
  int count;
  int heads;  // of a block

  explicit constexpr LatentBlocks(int num_heads)
      : count(div_up(num_heads, kLatentTileRows)), heads(div_up(num_heads, count)) {}
};

// As decode_grid and decode_attention, for a pool of one head: kv.k is [num_pages, 1, page_size,
// 576], kv.v is not used; out is [num_rows, num_q_heads, 512]. No window, no soft cap.
[[nodiscard]] DecodeGrid latent_decode_grid(int num_q_heads, KvDtype kv, int num_sms);
[[nodiscard]] cudaError_t latent_decode(const DecodeParams& p, cudaStream_t stream);

// As extend_attention. The plan is that of plan_extend for LatentBlocks::count KV heads and twice
// LatentBlocks::heads query heads each: its tiles then have kLatentTileRows rows at most.
[[nodiscard]] cudaError_t latent_extend(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda
