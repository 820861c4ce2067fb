#include "common/tensor_map.h"

#include <cudaTypedefs.h>

namespace srt::cuda {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 encode_tiled() {
  static const auto entry = []() -> PFN_cuTensorMapEncodeTiled_v12000 {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                           cudaEnableDefault, &found);
    if (e != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(f);
  }();
  return entry;
}

}  // namespace

cudaError_t make_tensor_map(const TensorMap& m, CUtensorMap* out) {
  const auto encode = encode_tiled();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t stride_bytes[TensorMap::kMaxDims] = {};
  for (int i = 1; i < m.ndim; ++i) stride_bytes[i - 1] = m.strides[i] * (m.is_bytes ? 1 : 2);
  constexpr cuuint32_t kSteps[TensorMap::kMaxDims] = {1, 1, 1, 1, 1};
  CUtensorMapDataType type =
      m.dtype == Dtype::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if (m.is_bytes) type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const bool plain = m.is_bytes && !m.swizzle_bytes;
  const CUresult r = encode(out, type, static_cast<cuuint32_t>(m.ndim), const_cast<void*>(m.data),
                            m.dims, stride_bytes, m.box, kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            plain ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t make_map(const MatrixMap& m, CUtensorMap* out) {
  const TensorMap general{.data = m.data,
                          .dtype = m.dtype,
                          .is_bytes = false,
                          .ndim = 2,
                          .dims = {static_cast<uint64_t>(m.columns), static_cast<uint64_t>(m.rows)},
                          .strides = {1, static_cast<uint64_t>(m.stride)},
                          .box = {64, static_cast<uint32_t>(m.box_rows)}};
  return make_tensor_map(general, out);
}

cudaError_t make_byte_map(const void* data, int rows, int columns, int64_t stride, int box_rows,
                          CUtensorMap* out) {
  const TensorMap general{.data = data,
                          .dtype = Dtype::kBF16,
                          .is_bytes = true,
                          .ndim = 2,
                          .dims = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
                          .strides = {1, static_cast<uint64_t>(stride)},
                          .box = {128, static_cast<uint32_t>(box_rows)},
                          .swizzle_bytes = true};
  return make_tensor_map(general, out);
}

}  // namespace srt::cuda
