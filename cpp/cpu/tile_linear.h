// Products of bf16 matrices on AMX tiles: y = x w^T + b, sums in float32.
//
// Weight rows are the rows of a tile as they lie in memory; tokens are its columns, packed in pairs
// of neighbours along k. So a weight is read once, unpacked, whether one token meets it or 32.
// Sums run along k in one order whatever the number of tokens: a row of x has the same result in
// any batch.
#pragma once

#include <cstring>

#include "cpu/linear.h"
#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

constexpr int64_t kTileRows = 16;  // of the weight; as many tokens are a full tile's columns
constexpr int64_t kTileDepth = 32;
constexpr int64_t kTilePairs = kTileDepth / 2;
constexpr int64_t kTileAheadBytes = 12288;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0 to 3: sums [weight row, token]; 4, 5: weights; 6, 7: tokens.
inline void configure_tiles(int64_t tokens) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    config.row_bytes[tile] = tile == 4 || tile == 5 ? 64 : static_cast<uint16_t>(4 * tokens);
  }
  _tile_loadconfig(&config);
}

inline int64_t padded_depth(int64_t in) { return (in + kTileDepth - 1) / kTileDepth * kTileDepth; }
// Columns of a block of tokens: fewer than 16 only where there is a single block.
inline int64_t block_tokens(int64_t rows) { return rows < kTileRows ? rows : kTileRows; }

// Words that pack_tokens writes.
inline int64_t packed_words(const LinearParams& p) {
  const int64_t width = block_tokens(p.rows);
  return (p.rows + width - 1) / width * width * padded_depth(p.in) / 2;
}

// out[block][k / 2][token]: x[token][k] and x[token][k + 1] in one word; zeros where x ends.
inline void pack_tokens(const LinearParams& p, uint32_t* out) {
  const int64_t width = block_tokens(p.rows);
  const int64_t pairs = padded_depth(p.in) / 2;
  const auto* x = static_cast<const uint16_t*>(p.x);
  for (int64_t first = 0; first < p.rows; first += width, out += pairs * width) {
    const int64_t tokens = p.rows - first < width ? p.rows - first : width;
    if (tokens < width) std::memset(out, 0, static_cast<size_t>(pairs * width) * 4);
    for (int64_t t = 0; t < tokens; ++t) {
      const uint16_t* row = x + (first + t) * p.x_stride;
      for (int64_t k = 0; k < p.in / 2; ++k) std::memcpy(out + k * width + t, row + 2 * k, 4);
      for (int64_t k = p.in / 2; k < pairs; ++k) out[k * width + t] = 0;
      if (p.in % 2 != 0) out[p.in / 2 * width + t] = row[p.in - 1];
    }
  }
}

// 32 weight rows from `w` on, of which `rows` exist.
struct WeightRows {
  const uint16_t* w;
  int64_t stride, rows, in;

  // Tile 0 or 1 at depth k, which may reach past the last row or the end of k.
  const void* part(int64_t tile, int64_t k, uint16_t* copy, int64_t* bytes) const {
    const uint16_t* from = w + tile * kTileRows * stride + k;
    const int64_t here = rows - tile * kTileRows;
    if (here >= kTileRows && k + kTileDepth <= in) {
      *bytes = stride * 2;
      return from;
    }
    std::memset(copy, 0, kTileRows * kTileDepth * 2);
    const int64_t depth = in - k < kTileDepth ? in - k : kTileDepth;
    for (int64_t r = 0; r < here && r < kTileRows; ++r) {
      std::memcpy(copy + r * kTileDepth, from + r * stride, static_cast<size_t>(depth) * 2);
    }
    *bytes = kTileDepth * 2;
    return copy;
  }
};

// sums[tile of weights][tile of tokens][16][width] of 32 weight rows with one or two token blocks.
template <bool kTwoBlocks, bool kStream>
inline void tile_block(const WeightRows& weights, const uint32_t* x, int64_t width, float* sums) {
  alignas(64) uint16_t copy[2][kTileRows * kTileDepth];
  const int64_t x_bytes = width * 4;
  const uint32_t* second = x + padded_depth(weights.in) / 2 * width;
  const auto* ahead = reinterpret_cast<const char*>(weights.w) + kTileAheadBytes;
  _tile_zero(0);
  _tile_zero(2);
  if (kTwoBlocks) {
    _tile_zero(1);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < weights.in; k += kTileDepth) {
    if (kStream) {
      for (int64_t line = 0; line < 2 * kTileRows; ++line) prefetch(ahead + line * 64);
      ahead += 2 * kTileRows * 64;
    }
    int64_t bytes[2];
    const void* first_rows = weights.part(0, k, copy[0], &bytes[0]);
    const void* next_rows = weights.part(1, k, copy[1], &bytes[1]);
    _tile_loadd(6, x + k / 2 * width, x_bytes);
    _tile_loadd(4, first_rows, bytes[0]);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, next_rows, bytes[1]);
    _tile_dpbf16ps(2, 5, 6);
    if (kTwoBlocks) {
      _tile_loadd(7, second + k / 2 * width, x_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  const int64_t tile = kTileRows * width;
  _tile_stored(0, sums, x_bytes);
  _tile_stored(2, sums + 2 * tile, x_bytes);
  if (kTwoBlocks) {
    _tile_stored(1, sums + tile, x_bytes);
    _tile_stored(3, sums + 3 * tile, x_bytes);
  }
}

// y[first .. first + tokens)[begin .. begin + rows) = sums[row][token] + bias, rounded once.
inline void write_tile(const LinearParams& p, const float* sums, int64_t width, int64_t first,
                       int64_t tokens, int64_t begin, int64_t rows) {
  const auto* bias = static_cast<const BF16*>(p.bias);
  const Vec shift = bias == nullptr ? splat(0.0F) : load_part(bias + begin, rows);
  const __m512i lanes =
      _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                         _mm512_set1_epi32(static_cast<int>(width)));
  for (int64_t t = 0; t < tokens; ++t) {
    const Vec column{_mm512_i32gather_ps(lanes, sums + t, 4)};
    store_part(static_cast<BF16*>(p.y) + (first + t) * p.out + begin, column + shift, rows);
  }
}

// Outputs [begin, end) for all tokens, which `packed` holds.
inline void tile_linear(const LinearParams& p, const uint32_t* packed, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 2 * kTileRows;
  alignas(64) float sums[4 * kTileRows * kTileRows];
  const int64_t width = block_tokens(p.rows);
  const int64_t block_words = padded_depth(p.in) / 2 * width;
  configure_tiles(width);
  for (int64_t n = begin; n < end; n += kRows) {
    const WeightRows weights{static_cast<const uint16_t*>(p.w) + n * p.w_stride, p.w_stride,
                             end - n < kRows ? end - n : kRows, p.in};
    for (int64_t first = 0; first < p.rows; first += 2 * width) {
      const uint32_t* x = packed + first / width * block_words;
      const bool two = first + width < p.rows;
      if (two) {
        first == 0 ? tile_block<true, true>(weights, x, width, sums)
                   : tile_block<true, false>(weights, x, width, sums);
      } else {
        first == 0 ? tile_block<false, true>(weights, x, width, sums)
                   : tile_block<false, false>(weights, x, width, sums);
      }
      for (int64_t tile = 0; tile < 4; ++tile) {
        const int64_t row = tile / 2 * kTileRows;
        const int64_t token = first + tile % 2 * width;
        if (row >= weights.rows || token >= p.rows) continue;
        write_tile(p, sums + tile * kTileRows * width, width, token,
                   p.rows - token < width ? p.rows - token : width, n + row,
                   weights.rows - row < kTileRows ? weights.rows - row : kTileRows);
      }
    }
  }
  _tile_release();
}

}  // namespace srt::cpu::SRT_ISA
