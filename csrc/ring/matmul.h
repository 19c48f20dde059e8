// Ring: dense products over Z_2^64. All arithmetic wraps; every input value is allowed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"

namespace privinfer::ring {

// c[m, n] (+)= a[m, kc] * b[kc, n] with row strides lda, ldb, ldc (in elements). Adds to c if `add`, else
// overwrites it. Reads and writes exactly the elements named, so tails need no padding. c overlaps neither
// input.
using Panel = void (*)(size_t m, size_t n, size_t kc, const uint64_t* a, size_t lda, const uint64_t* b,
                       size_t ldb, uint64_t* c, size_t ldc, bool add);
Panel panel_for(Path path);

// Tile sizes shared with the convolution: a tile of C is at most kRows x kCols, its slice of B is kDepth
// deep.
constexpr size_t kRows = 128;
constexpr size_t kCols = 128;
constexpr size_t kDepth = 256;
// Row stride of a copied slice of B; not a power of two, so that its rows spread over the cache sets.
constexpr size_t kStride = kCols + 8;
// Multiply-adds worth a thread (some 100 us).
constexpr size_t kThreadWork = size_t{1} << 20;

// Per-thread scratch that stays allocated, uninitialised, at least `count` elements.
uint64_t* scratch(size_t count);

// c = a b mod 2^64. Shapes a [m, k], b [k, n], c [m, n], row-major and dense; any of m, n, k may be 0.
void matmul(const uint64_t* a, const uint64_t* b, uint64_t* c, size_t m, size_t k, size_t n);

}  // namespace privinfer::ring
