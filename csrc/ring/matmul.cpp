#include "ring/matmul.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"
#ifdef PRIVINFER_X86
#include <immintrin.h>
#endif

namespace privinfer::ring {
namespace {

void panel_portable(size_t m, size_t n, size_t kc, const uint64_t* a, size_t lda, const uint64_t* b,
                    size_t ldb, uint64_t* c, size_t ldc, bool add) {
  constexpr size_t kWidth = 8;
  for (size_t j = 0; j < n; j += kWidth) {
    const size_t width = std::min(kWidth, n - j);
    for (size_t i = 0; i < m; ++i) {
      uint64_t sum[kWidth] = {};
      const uint64_t* row = a + i * lda;
      if (width == kWidth) {
        for (size_t k = 0; k < kc; ++k) {
          for (size_t v = 0; v < kWidth; ++v) sum[v] += row[k] * b[k * ldb + j + v];
        }
      } else {
        for (size_t k = 0; k < kc; ++k) {
          for (size_t v = 0; v < width; ++v) sum[v] += row[k] * b[k * ldb + j + v];
        }
      }
      uint64_t* out = c + i * ldc + j;
      for (size_t v = 0; v < width; ++v) out[v] = sum[v] + (add ? out[v] : 0);
    }
  }
}

#ifdef PRIVINFER_X86

// With a = a0 + 2^32 a1 and b alike, ab = a0 b0 + 2^32 (a0 b1 + a1 b0) mod 2^64. `low` sums a0 b0 (vpmuludq);
// `cross` sums a1 b0 and a0 b1 mod 2^32 in the two halves of each lane (vpmulld with the halves of a
// swapped). The cross sums are added and shifted once, at the end: two multiplications a product instead of
// three.
template <int MR, int NV>
PRIVINFER_TARGET_AVX2 inline void micro_avx2(size_t kc, const uint64_t* a, size_t lda, const uint64_t* b,
                                             size_t ldb, uint64_t* c, size_t ldc, bool add, __m256i tail) {
  __m256i low[MR][NV], cross[MR][NV];
  for (int i = 0; i < MR; ++i) {
    for (int v = 0; v < NV; ++v) low[i][v] = cross[i][v] = _mm256_setzero_si256();
  }
  for (size_t k = 0; k < kc; ++k) {
    __m256i row[NV];
    const long long* at = reinterpret_cast<const long long*>(b + k * ldb);
    for (int v = 0; v < NV - 1; ++v)
      row[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 4 * v));
    row[NV - 1] = _mm256_maskload_epi64(at + 4 * (NV - 1), tail);
    for (int i = 0; i < MR; ++i) {
      const __m256i x = _mm256_set1_epi64x(static_cast<long long>(a[i * lda + k]));
      const __m256i swapped = _mm256_shuffle_epi32(x, 0xB1);
      for (int v = 0; v < NV; ++v) {
        low[i][v] = _mm256_add_epi64(low[i][v], _mm256_mul_epu32(x, row[v]));
        cross[i][v] = _mm256_add_epi32(cross[i][v], _mm256_mullo_epi32(swapped, row[v]));
      }
    }
  }
  for (int i = 0; i < MR; ++i) {
    for (int v = 0; v < NV; ++v) {
      long long* at = reinterpret_cast<long long*>(c + i * ldc + 4 * v);
      const __m256i mask = v == NV - 1 ? tail : _mm256_set1_epi64x(-1);
      const __m256i high =
          _mm256_slli_epi64(_mm256_add_epi32(cross[i][v], _mm256_srli_epi64(cross[i][v], 32)), 32);
      __m256i sum = _mm256_add_epi64(low[i][v], high);
      if (add) sum = _mm256_add_epi64(sum, _mm256_maskload_epi64(at, mask));
      _mm256_maskstore_epi64(at, mask, sum);
    }
  }
}

template <int NV>
PRIVINFER_TARGET_AVX2 void rows_avx2(size_t m, size_t kc, const uint64_t* a, size_t lda, const uint64_t* b,
                                     size_t ldb, uint64_t* c, size_t ldc, bool add, __m256i tail) {
  size_t i = 0;
  for (; i + 3 <= m; i += 3) micro_avx2<3, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
  if (m - i == 2) micro_avx2<2, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
  if (m - i == 1) micro_avx2<1, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
}

PRIVINFER_TARGET_AVX2 void panel_avx2(size_t m, size_t n, size_t kc, const uint64_t* a, size_t lda,
                                      const uint64_t* b, size_t ldb, uint64_t* c, size_t ldc, bool add) {
  for (size_t j = 0; j < n; j += 8) {
    const size_t width = std::min<size_t>(8, n - j);
    const long long last = static_cast<long long>((width - 1) % 4 + 1);
    const __m256i tail = _mm256_cmpgt_epi64(_mm256_set1_epi64x(last), _mm256_setr_epi64x(0, 1, 2, 3));
    if (width > 4) {
      rows_avx2<2>(m, kc, a, lda, b + j, ldb, c + j, ldc, add, tail);
    } else {
      rows_avx2<1>(m, kc, a, lda, b + j, ldb, c + j, ldc, add, tail);
    }
  }
}

template <int MR, int NV>
PRIVINFER_TARGET_AVX512 inline void micro_avx512(size_t kc, const uint64_t* a, size_t lda, const uint64_t* b,
                                                 size_t ldb, uint64_t* c, size_t ldc, bool add,
                                                 __mmask8 tail) {
  __m512i sum[MR][NV];
  for (int i = 0; i < MR; ++i) {
    for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_setzero_si512();
  }
  for (size_t k = 0; k < kc; ++k) {
    __m512i row[NV];
    for (int v = 0; v < NV - 1; ++v) row[v] = _mm512_loadu_si512(b + k * ldb + 8 * v);
    row[NV - 1] = _mm512_maskz_loadu_epi64(tail, b + k * ldb + 8 * (NV - 1));
    for (int i = 0; i < MR; ++i) {
      const __m512i x = _mm512_set1_epi64(static_cast<long long>(a[i * lda + k]));
      for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_add_epi64(sum[i][v], _mm512_mullo_epi64(x, row[v]));
    }
  }
  for (int i = 0; i < MR; ++i) {
    for (int v = 0; v < NV; ++v) {
      uint64_t* at = c + i * ldc + 8 * v;
      const __mmask8 mask = v == NV - 1 ? tail : static_cast<__mmask8>(0xFF);
      if (add) sum[i][v] = _mm512_add_epi64(sum[i][v], _mm512_maskz_loadu_epi64(mask, at));
      _mm512_mask_storeu_epi64(at, mask, sum[i][v]);
    }
  }
}

template <int NV>
PRIVINFER_TARGET_AVX512 void rows_avx512(size_t m, size_t kc, const uint64_t* a, size_t lda,
                                         const uint64_t* b, size_t ldb, uint64_t* c, size_t ldc, bool add,
                                         __mmask8 tail) {
  size_t i = 0;
  for (; i + 4 <= m; i += 4) micro_avx512<4, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
  if (m - i == 3) micro_avx512<3, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
  if (m - i == 2) micro_avx512<2, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
  if (m - i == 1) micro_avx512<1, NV>(kc, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, tail);
}

PRIVINFER_TARGET_AVX512 void panel_avx512(size_t m, size_t n, size_t kc, const uint64_t* a, size_t lda,
                                          const uint64_t* b, size_t ldb, uint64_t* c, size_t ldc, bool add) {
  for (size_t j = 0; j < n; j += 32) {
    const size_t width = std::min<size_t>(32, n - j);
    const __mmask8 tail = static_cast<__mmask8>(0xFF >> (7 - (width - 1) % 8));
    switch ((width - 1) / 8) {
      case 0:
        rows_avx512<1>(m, kc, a, lda, b + j, ldb, c + j, ldc, add, tail);
        break;
      case 1:
        rows_avx512<2>(m, kc, a, lda, b + j, ldb, c + j, ldc, add, tail);
        break;
      case 2:
        rows_avx512<3>(m, kc, a, lda, b + j, ldb, c + j, ldc, add, tail);
        break;
      default:
        rows_avx512<4>(m, kc, a, lda, b + j, ldb, c + j, ldc, add, tail);
    }
  }
}

#endif  // PRIVINFER_X86

// Few rows: B is read once, so copying it would double the traffic. Strips of columns, a few rows of B at a
// time, keep the reads sequential and C in the nearest cache.
void matmul_streaming(Panel panel, const uint64_t* a, const uint64_t* b, uint64_t* c, size_t m, size_t k,
                      size_t n) {
  constexpr size_t kStrip = 512;
  const size_t strips = (n - 1) / kStrip + 1;
  const size_t depth = n <= 32 ? k : 16;
  const size_t chunk = m * k * n < 2 * kThreadWork ? strips : 1;
  parallel_for(strips, chunk, [&](size_t begin, size_t end) {
    for (size_t strip = begin; strip < end; ++strip) {
      const size_t j = strip * kStrip;
      const size_t width = std::min(kStrip, n - j);
      for (size_t at = 0; at < k; at += depth) {
        panel(m, width, std::min(depth, k - at), a + at, k, b + at * n + j, n, c + j, n, at > 0);
      }
    }
  });
}

}  // namespace

Panel panel_for(Path path) {
#ifdef PRIVINFER_X86
  if (path == Path::kAvx512) return panel_avx512;
  if (path != Path::kPortable) return panel_avx2;
#endif
  (void)path;
  return panel_portable;
}

uint64_t* scratch(size_t count) {
  thread_local std::vector<uint64_t> memory;
  if (memory.size() < count) memory.resize(count);
  return memory.data();
}

void matmul(const uint64_t* a, const uint64_t* b, uint64_t* c, size_t m, size_t k, size_t n) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    std::memset(c, 0, m * n * sizeof(uint64_t));
    return;
  }
  const Panel panel = panel_for(current_path());
  if (m < 8) {
    matmul_streaming(panel, a, b, c, m, k, n);
    return;
  }

  const size_t tiles_down = (m - 1) / kRows + 1;
  const size_t tiles_across = (n - 1) / kCols + 1;
  const size_t tile_work = std::min(m, kRows) * std::min(n, kCols) * k;
  const size_t chunk = kThreadWork / tile_work + 1;
  parallel_for(tiles_down * tiles_across, chunk, [&](size_t begin, size_t end) {
    uint64_t* slice = scratch(kDepth * kStride);
    for (size_t tile = begin; tile < end; ++tile) {
      const size_t i = tile / tiles_across * kRows;
      const size_t j = tile % tiles_across * kCols;
      const size_t height = std::min(kRows, m - i);
      const size_t width = std::min(kCols, n - j);
      for (size_t at = 0; at < k; at += kDepth) {
        const size_t depth = std::min(kDepth, k - at);
        for (size_t row = 0; row < depth; ++row) {
          std::memcpy(slice + row * kStride, b + (at + row) * n + j, width * sizeof(uint64_t));
        }
        panel(height, width, depth, a + i * k + at, k, slice, kStride, c + i * n + j, n, at > 0);
      }
    }
  });
}

}  // namespace privinfer::ring
