#include "approx/table.h"

#include <cstring>
#include <vector>

#include "prg/aes.h"
#include "prg/lanes.h"
#include "threads.h"

namespace privinfer::approx {
namespace {

using namespace prg;

// Which word, and which part of the leaf, half 0 of a pair is of. Half 1 is the next part of the same word,
// or with leaves of one part the next word.
int first_word(const fss::DpfShape& shape, int p) { return 2 * p >> shape.cut; }
size_t first_part(const fss::DpfShape& shape, int p) {
  return static_cast<size_t>(2 * p) & ((size_t{1} << shape.cut) - 1);
}

// Row k, entry e: C_k[-e mod 2^m] and what half 1 of a pair wants, C_k[-e - 2^depth] or, with leaves of one
// part, C_k[-e] again (2^depth = 2^m). Twice around, so that 2^m outputs from any entry are one piece, and as
// much more as a step of small trees reads in vain.
struct Tables {
  std::vector<uint64_t> words;
  size_t stride;

  Tables(const uint64_t* coefficients, const fss::DpfShape& shape) {
    const size_t size = size_t{1} << shape.m, entries = 2 * size + 16, half = size_t{1} << shape.depth();
    stride = 16 * entries;
    words.resize(2 * entries * static_cast<size_t>(shape.w));
    uint64_t* at = words.data();
    for (int k = 0; k < shape.w; ++k, coefficients += size) {
      for (size_t e = 0; e < entries; ++e, at += 2) {
        at[0] = coefficients[(0 - e) & (size - 1)];
        at[1] = coefficients[(0 - e - half) & (size - 1)];
      }
    }
  }
  const uint8_t* row(int k) const {
    return reinterpret_cast<const uint8_t*>(words.data()) + stride * static_cast<size_t>(k);
  }
};

// at[k][j] = binom(k, j) beta^(k - j) (-1)^j, negated for party 1; 0 where j > k.
struct Weights {
  uint64_t at[kMaxDegree + 1][kMaxDegree + 2];

  Weights(int party, uint64_t xhat, int s, int w) {
    const uint64_t beta = xhat & ((uint64_t{1} << s) - 1);
    std::memset(at, 0, sizeof at);
    at[0][0] = party == 0 ? 1 : ~uint64_t{0};
    // (beta - rho)^k = (beta - rho) (beta - rho)^(k - 1).
    for (int k = 1; k < w; ++k) {
      for (int j = 0; j <= k; ++j) at[k][j] = beta * at[k - 1][j] - (j > 0 ? at[k - 1][j - 1] : 0);
    }
  }
};

namespace portable {
#define PRIVINFER_LANES PortableLanes
#define PRIVINFER_TARGET
#include "approx/table.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace portable

#ifdef PRIVINFER_X86
namespace aesni {
#define PRIVINFER_LANES AesniLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX2
#include "approx/table.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace aesni

namespace vaes {
#define PRIVINFER_LANES VaesLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_VAES
#include "approx/table.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace vaes

namespace avx512 {
#define PRIVINFER_LANES Avx512Lanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX512
#include "approx/table.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace avx512
#endif

decltype(&portable::eval) eval_for(Path path) {
#ifdef PRIVINFER_X86
  if (path == Path::kAvx512) return avx512::eval;
  if (path == Path::kVaes) return vaes::eval;
  if (path == Path::kAvx2) return aesni::eval;
#endif
  (void)path;
  return portable::eval;
}

}  // namespace

void table_eval(int party, const uint64_t* xhat, size_t count, const fss::DpfShape& shape, int s,
                const uint64_t* coefficients, const uint8_t* roots, const uint8_t* cw, const uint64_t* last,
                const uint8_t* tweak, uint64_t* out) {
  if (count == 0) return;
  const auto eval = eval_for(current_path());
  const fss::DpfKeys keys(tweak);
  const Tables tables(coefficients, shape);
  parallel_for(count, fss::dpf_chunk(shape), [&](size_t begin, size_t end) {
    fss::DpfScratch scratch(shape);
    eval(keys, party, xhat + begin, end - begin, shape, s, tables, roots + 16 * begin,
         cw + shape.stride() * begin, last + shape.leaf_words() * begin, scratch.data(), out + begin);
  });
}

}  // namespace privinfer::approx
