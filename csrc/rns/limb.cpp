#include "rns/limb.h"

#include <vector>

#include "dispatch.h"

#ifdef PRIVINFER_X86
#include <immintrin.h>
#define PRIVINFER_TARGET_FMA __attribute__((target("avx2,fma")))
#endif

namespace privinfer::rns {

bool vector_path() {
#ifdef PRIVINFER_X86
  static const bool fma = __builtin_cpu_supports("fma");
  return fma && current_path() >= Path::kAvx2;
#else
  return false;
#endif
}

namespace {

// -- portable -----------------------------------------------------------------------------------------

void ntt_portable(uint64_t* a, size_t n, const Prime& p) {
  const uint64_t q = p.q;
  for (size_t m = 1, t = n / 2; m < n; m *= 2, t /= 2) {
    for (size_t i = 0; i < m; ++i) {
      const uint64_t w = p.root[m + i], ws = p.root_shoup[m + i];
      uint64_t *x = a + 2 * i * t, *y = x + t;
      for (size_t j = 0; j < t; ++j) {
        const uint64_t u = x[j], v = mul_shoup(y[j], w, ws, q);
        x[j] = add(u, v, q);
        y[j] = sub(u, v, q);
      }
    }
  }
}

void intt_portable(uint64_t* a, size_t n, const Prime& p) {
  const uint64_t q = p.q;
  for (size_t m = n / 2, t = 1; m >= 1; m /= 2, t *= 2) {
    for (size_t i = 0; i < m; ++i) {
      const uint64_t w = p.inverse_root[m + i], ws = p.inverse_root_shoup[m + i];
      uint64_t *x = a + 2 * i * t, *y = x + t;
      for (size_t j = 0; j < t; ++j) {
        const uint64_t u = x[j], v = y[j];
        x[j] = add(u, v, q);
        y[j] = mul_shoup(sub(u, v, q), w, ws, q);
      }
    }
  }
  for (size_t j = 0; j < n; ++j) a[j] = mul_shoup(a[j], p.n_inverse, p.n_inverse_shoup, q);
}

void multiply_sum_portable(const Sum& s, uint64_t* const out[2], size_t n, const Prime& p) {
  for (int c = 0; c < 2; ++c) {
    if (out[c] == nullptr) continue;
    for (size_t i = 0; i < n; ++i) {
      const size_t at = s.order ? s.order[i] : i;
      uint64_t total = 0;
      for (size_t k = 0; k < s.count; ++k) {
        total = add(total, mul(s.x[c][k * s.x_step + at], s.y[c][k * s.y_step + i], p), p.q);
      }
      out[c][i] = total;
    }
  }
}

#ifdef PRIVINFER_X86

// -- vectors of four doubles --------------------------------------------------------------------------
//
// Integers of magnitude below 2^52 are exact in doubles, and so is the remainder of a product by FMA:
//   h = x y (rounded), l = x y - h (exact), c = round(h / q), r = (h - c q) + l (exact).
// Three roundings of at most 2^-53 each put c off by 3 * 2^-53 |x y| / q besides its own half, and q < 2^50:
// where |x| <= B q and |y| <= q/2, |r| <= (1/2 + 3B/16) q; where |x|, |y| <= q, |r| <= 7/8 q.

struct Modulus {
  __m256d q, inverse, half, magic;
};

PRIVINFER_TARGET_FMA inline Modulus modulus(uint64_t q) {
  const double d = static_cast<double>(q);
  return {_mm256_set1_pd(d), _mm256_set1_pd(1.0 / d), _mm256_set1_pd(d / 2), _mm256_set1_pd(0x1p52)};
}

constexpr double kGrowth = 1.25, kReduced = 0.51;
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

PRIVINFER_TARGET_FMA inline __m256d times(__m256d x, __m256d y, const Modulus& m) {
  const __m256d h = _mm256_mul_pd(x, y);
  const __m256d l = _mm256_fmsub_pd(x, y, h);
  const __m256d c = _mm256_round_pd(_mm256_mul_pd(h, m.inverse), kNearest);
  return _mm256_add_pd(_mm256_fnmadd_pd(c, m.q, h), l);
}

// |x| <= 2^52 to |x| <= q/2 (and a last place).
PRIVINFER_TARGET_FMA inline __m256d reduced(__m256d x, const Modulus& m) {
  const __m256d c = _mm256_round_pd(_mm256_mul_pd(x, m.inverse), kNearest);
  return _mm256_fnmadd_pd(c, m.q, x);
}

// Integers in [0, 2^52) as bits of doubles and back: with the exponent of 2^52 the mantissa is the integer.
PRIVINFER_TARGET_FMA inline __m256d load(const uint64_t* a, const Modulus& m) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(v), m.magic), m.magic);
}

PRIVINFER_TARGET_FMA inline __m256d gather(const uint64_t* a, const uint32_t* order, const Modulus& m) {
  const __m128i at = _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
  const __m256i v = _mm256_i32gather_epi64(reinterpret_cast<const long long*>(a), at, 8);
  return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(v), m.magic), m.magic);
}

// |x| < q to canonical.
PRIVINFER_TARGET_FMA inline void store(uint64_t* a, __m256d x, const Modulus& m) {
  const __m256d zero = _mm256_setzero_pd();
  x = _mm256_add_pd(x, _mm256_and_pd(_mm256_cmp_pd(x, zero, _CMP_LT_OQ), m.q));
  x = _mm256_sub_pd(x, _mm256_and_pd(_mm256_cmp_pd(x, m.q, _CMP_GE_OQ), m.q));
  const __m256d bits = _mm256_xor_pd(_mm256_add_pd(x, m.magic), m.magic);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(a), _mm256_castpd_si256(bits));
}

double* scratch(size_t n) {
  thread_local std::vector<double> memory;
  if (memory.size() < n) memory.resize(n);
  return memory.data();
}

// Lanes of a stride of two or one: pairs are brought side by side, and back.
PRIVINFER_TARGET_FMA inline void pair2(__m256d* x, __m256d* y) {
  const __m256d a = *x, b = *y;
  *x = _mm256_permute2f128_pd(a, b, 0x20);
  *y = _mm256_permute2f128_pd(a, b, 0x31);
}
PRIVINFER_TARGET_FMA inline void pair1(__m256d* x, __m256d* y) {
  const __m256d a = *x, b = *y;
  *x = _mm256_unpacklo_pd(a, b);
  *y = _mm256_unpackhi_pd(a, b);
}
PRIVINFER_TARGET_FMA inline __m256d roots2(const double* w) {  // w0 w0 w1 w1
  return _mm256_permute4x64_pd(_mm256_castpd128_pd256(_mm_loadu_pd(w)), 0x50);
}
PRIVINFER_TARGET_FMA inline __m256d roots1(const double* w) {  // w0 w2 w1 w3, as pair1 orders pairs
  return _mm256_permute4x64_pd(_mm256_loadu_pd(w), 0xD8);
}

// x, y <= 4q in, u + w v and u - w v out; x is reduced first where its bound would pass 4q.
PRIVINFER_TARGET_FMA inline void forward(__m256d* x, __m256d* y, __m256d w, bool reduce, const Modulus& m) {
  const __m256d u = reduce ? reduced(*x, m) : *x;
  const __m256d v = times(*y, w, m);
  *x = _mm256_add_pd(u, v);
  *y = _mm256_sub_pd(u, v);
}

PRIVINFER_TARGET_FMA void ntt_vector(uint64_t* a, size_t n, const Prime& p) {
  const Modulus m = modulus(p.q);
  double* d = scratch(n);
  const double* roots = p.wide_root.data();
  // Layers two at a time while the stride allows: half the passes over memory.
  size_t block = 1, t = n / 2;
  double bound = 1;  // in q; a product of what is below 4q stays below 5/4 q
  bool first = true;
  while (t >= 8) {
    const bool reduce_one = bound + kGrowth > 4;
    const double middle = (reduce_one ? kReduced : bound) + kGrowth;
    const bool reduce_two = middle + kGrowth > 4;
    bound = (reduce_two ? kReduced : middle) + kGrowth;
    const size_t h = t / 2;
    for (size_t i = 0; i < block; ++i) {
      const __m256d w = _mm256_set1_pd(roots[block + i]);
      const __m256d w0 = _mm256_set1_pd(roots[2 * (block + i)]);
      const __m256d w1 = _mm256_set1_pd(roots[2 * (block + i) + 1]);
      const size_t base = 2 * i * t;
      for (size_t j = base; j < base + h; j += 4) {
        __m256d x0, x1, x2, x3;
        if (first) {
          x0 = load(a + j, m), x1 = load(a + j + h, m), x2 = load(a + j + t, m), x3 = load(a + j + t + h, m);
        } else {
          x0 = _mm256_loadu_pd(d + j), x1 = _mm256_loadu_pd(d + j + h);
          x2 = _mm256_loadu_pd(d + j + t), x3 = _mm256_loadu_pd(d + j + t + h);
        }
        forward(&x0, &x2, w, reduce_one, m);
        forward(&x1, &x3, w, reduce_one, m);
        forward(&x0, &x1, w0, reduce_two, m);
        forward(&x2, &x3, w1, reduce_two, m);
        _mm256_storeu_pd(d + j, x0);
        _mm256_storeu_pd(d + j + h, x1);
        _mm256_storeu_pd(d + j + t, x2);
        _mm256_storeu_pd(d + j + t + h, x3);
      }
    }
    first = false;
    block *= 4;
    t /= 4;
  }
  if (t == 4) {  // an odd number of layers is left: one alone
    const bool reduce_one = bound + kGrowth > 4;
    bound = (reduce_one ? kReduced : bound) + kGrowth;
    for (size_t i = 0; i < block; ++i) {
      double* x = d + 8 * i;
      __m256d u = _mm256_loadu_pd(x), v = _mm256_loadu_pd(x + 4);
      forward(&u, &v, _mm256_set1_pd(roots[block + i]), reduce_one, m);
      _mm256_storeu_pd(x, u);
      _mm256_storeu_pd(x + 4, v);
    }
    block *= 2;
  }
  const bool reduce_one = bound + kGrowth > 4;
  const double middle = (reduce_one ? kReduced : bound) + kGrowth;
  const bool reduce_two = middle + kGrowth > 4;
  for (size_t i = 0; i < n / 8; ++i) {
    __m256d x = _mm256_loadu_pd(d + 8 * i), y = _mm256_loadu_pd(d + 8 * i + 4);
    pair2(&x, &y);  // a0 a1 a4 a5 | a2 a3 a6 a7
    forward(&x, &y, roots2(roots + n / 4 + 2 * i), reduce_one, m);
    pair2(&x, &y);  // a0 a1 a2 a3 | a4 a5 a6 a7
    pair1(&x, &y);  // a0 a4 a2 a6 | a1 a5 a3 a7
    forward(&x, &y, roots1(roots + n / 2 + 4 * i), reduce_two, m);
    pair1(&x, &y);
    store(a + 8 * i, reduced(x, m), m);
    store(a + 8 * i + 4, reduced(y, m), m);
  }
}

// (u - v) w, within (1/2 + 3B/16) q for |u - v| <= B q, and u + v, reduced where asked.
PRIVINFER_TARGET_FMA inline void backward(__m256d* x, __m256d* y, __m256d w, bool reduce, const Modulus& m) {
  const __m256d u = *x, v = *y;
  const __m256d total = _mm256_add_pd(u, v);
  *x = reduce ? reduced(total, m) : total;
  *y = times(_mm256_sub_pd(u, v), w, m);
}

PRIVINFER_TARGET_FMA void intt_vector(uint64_t* a, size_t n, const Prime& p) {
  const Modulus m = modulus(p.q);
  double* d = scratch(n);
  const double* roots = p.wide_inverse_root.data();
  for (size_t i = 0; i < n / 8; ++i) {
    __m256d x = load(a + 8 * i, m), y = load(a + 8 * i + 4, m);
    pair1(&x, &y);
    backward(&x, &y, roots1(roots + n / 2 + 4 * i), false, m);  // 2q | q
    pair1(&x, &y);
    pair2(&x, &y);
    backward(&x, &y, roots2(roots + n / 4 + 2 * i), true, m);  // q/2 | q
    pair2(&x, &y);
    _mm256_storeu_pd(d + 8 * i, x);
    _mm256_storeu_pd(d + 8 * i + 4, y);
  }
  size_t t = 4, block = n / 8;
  // Two layers at a time, q in and q out: all sums are reduced to q/2, products of differences below 7/4 q
  // stay below 0.83 q.
  while (block >= 2) {
    for (size_t i = 0; i < block / 2; ++i) {
      const __m256d w0 = _mm256_set1_pd(roots[block + 2 * i]);
      const __m256d w1 = _mm256_set1_pd(roots[block + 2 * i + 1]);
      const __m256d w = _mm256_set1_pd(roots[block / 2 + i]);
      const size_t base = 4 * i * t;
      for (size_t j = base; j < base + t; j += 4) {
        __m256d x0 = _mm256_loadu_pd(d + j), x1 = _mm256_loadu_pd(d + j + t);
        __m256d x2 = _mm256_loadu_pd(d + j + 2 * t), x3 = _mm256_loadu_pd(d + j + 3 * t);
        backward(&x0, &x1, w0, true, m);
        backward(&x2, &x3, w1, true, m);
        backward(&x0, &x2, w, true, m);
        backward(&x1, &x3, w, true, m);
        _mm256_storeu_pd(d + j, x0);
        _mm256_storeu_pd(d + j + t, x1);
        _mm256_storeu_pd(d + j + 2 * t, x2);
        _mm256_storeu_pd(d + j + 3 * t, x3);
      }
    }
    block /= 4;
    t *= 4;
  }
  const __m256d scale = _mm256_set1_pd(p.wide_n_inverse);
  if (block == 1) {
    const __m256d w = _mm256_set1_pd(roots[1]);
    for (size_t j = 0; j < n / 2; j += 4) {
      __m256d x = _mm256_loadu_pd(d + j), y = _mm256_loadu_pd(d + j + n / 2);
      backward(&x, &y, w, false, m);
      store(a + j, times(x, scale, m), m);
      store(a + j + n / 2, times(y, scale, m), m);
    }
    return;
  }
  for (size_t j = 0; j < n; j += 4) store(a + j, times(_mm256_loadu_pd(d + j), scale, m), m);
}

// Residues are below 2^50: the sign of a difference says whether the prime has to be added back.
PRIVINFER_TARGET_FMA void add_vector(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n,
                                     const Prime& p) {
  const __m256i q = _mm256_set1_epi64x(static_cast<long long>(p.q)), zero = _mm256_setzero_si256();
  for (size_t j = 0; j < n; j += 4) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + j));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + j));
    const __m256i r = _mm256_sub_epi64(_mm256_add_epi64(x, y), q);
    const __m256i back = _mm256_and_si256(_mm256_cmpgt_epi64(zero, r), q);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), _mm256_add_epi64(r, back));
  }
}

PRIVINFER_TARGET_FMA void sub_vector(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n,
                                     const Prime& p) {
  const __m256i q = _mm256_set1_epi64x(static_cast<long long>(p.q)), zero = _mm256_setzero_si256();
  for (size_t j = 0; j < n; j += 4) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + j));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + j));
    const __m256i r = _mm256_sub_epi64(x, y);
    const __m256i back = _mm256_and_si256(_mm256_cmpgt_epi64(zero, r), q);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), _mm256_add_epi64(r, back));
  }
}

PRIVINFER_TARGET_FMA void mul_vector(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n,
                                     const Prime& p) {
  const Modulus m = modulus(p.q);
  for (size_t j = 0; j < n; j += 4) store(out + j, times(load(a + j, m), load(b + j, m), m), m);
}

PRIVINFER_TARGET_FMA void scale_vector(const uint64_t* a, uint64_t w, uint64_t* out, size_t n,
                                       const Prime& p) {
  const Modulus m = modulus(p.q);
  const __m256d factor = _mm256_set1_pd(static_cast<double>(w));
  for (size_t j = 0; j < n; j += 4) store(out + j, times(load(a + j, m), factor, m), m);
}

PRIVINFER_TARGET_FMA void sub_scale_vector(const uint64_t* a, const uint64_t* r, uint64_t w, uint64_t* out,
                                           size_t n, const Prime& p) {
  const Modulus m = modulus(p.q);
  const __m256d factor = _mm256_set1_pd(static_cast<double>(w));
  for (size_t j = 0; j < n; j += 4) {
    store(out + j, times(_mm256_sub_pd(load(a + j, m), load(r + j, m)), factor, m), m);
  }
}

// Partial sums of up to three products, each within q, and a remainder of q/2 stay below 4q < 2^52.
PRIVINFER_TARGET_FMA void multiply_sum_vector(const Sum& s, uint64_t* const out[2], size_t n,
                                              const Prime& p) {
  const Modulus m = modulus(p.q);
  const bool two = out[1] != nullptr;
  const bool same_x = s.x[0] == s.x[1];
  const bool same_y = s.y[0] == s.y[1];
  for (size_t i = 0; i < n; i += 4) {
    __m256d first = _mm256_setzero_pd(), second = first;
    for (size_t k = 0; k < s.count; ++k) {
      const uint64_t* x0 = s.x[0] + k * s.x_step;
      const uint64_t* y0 = s.y[0] + k * s.y_step;
      const __m256d x = s.order ? gather(x0, s.order + i, m) : load(x0 + i, m);
      const __m256d y = load(y0 + i, m);
      first = _mm256_add_pd(first, times(x, y, m));
      if (two) {
        const uint64_t* x1 = s.x[1] + k * s.x_step;
        const __m256d u = same_x ? x : s.order ? gather(x1, s.order + i, m) : load(x1 + i, m);
        const __m256d v = same_y ? y : load(s.y[1] + k * s.y_step + i, m);
        second = _mm256_add_pd(second, times(u, v, m));
      }
      if (k % 3 == 2) {
        first = reduced(first, m);
        second = reduced(second, m);
      }
    }
    store(out[0] + i, reduced(first, m), m);
    if (two) store(out[1] + i, reduced(second, m), m);
  }
}

#endif

}  // namespace

void ntt(uint64_t* a, size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return ntt_vector(a, n, p);
#endif
  (void)fast;
  ntt_portable(a, n, p);
}

void intt(uint64_t* a, size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return intt_vector(a, n, p);
#endif
  (void)fast;
  intt_portable(a, n, p);
}

void add(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return add_vector(a, b, out, n, p);
#endif
  (void)fast;
  for (size_t j = 0; j < n; ++j) out[j] = add(a[j], b[j], p.q);
}

void sub(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return sub_vector(a, b, out, n, p);
#endif
  (void)fast;
  for (size_t j = 0; j < n; ++j) out[j] = sub(a[j], b[j], p.q);
}

void mul(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return mul_vector(a, b, out, n, p);
#endif
  (void)fast;
  for (size_t j = 0; j < n; ++j) out[j] = mul(a[j], b[j], p);
}

void scale(const uint64_t* a, uint64_t w, uint64_t* out, size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return scale_vector(a, w, out, n, p);
#endif
  (void)fast;
  const uint64_t ws = shoup(w, p.q);
  for (size_t j = 0; j < n; ++j) out[j] = mul_shoup(a[j], w, ws, p.q);
}

void multiply_sum(const Sum& sum, uint64_t* const out[2], size_t n, const Prime& p, bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return multiply_sum_vector(sum, out, n, p);
#endif
  (void)fast;
  multiply_sum_portable(sum, out, n, p);
}

void sub_scale(const uint64_t* a, const uint64_t* r, uint64_t w, uint64_t* out, size_t n, const Prime& p,
               bool fast) {
#ifdef PRIVINFER_X86
  if (fast) return sub_scale_vector(a, r, w, out, n, p);
#endif
  (void)fast;
  const uint64_t ws = shoup(w, p.q);
  for (size_t j = 0; j < n; ++j) out[j] = mul_shoup(sub(a[j], r[j], p.q), w, ws, p.q);
}

void centre(const uint64_t* r, uint64_t from, uint64_t* out, size_t n, const Prime& p) {
  // Add from/2, reduce, subtract from/2: no branch on the value.
  const uint64_t half = from / 2, back = half % p.q;
  const bool close = from < 2 * p.q;
  for (size_t j = 0; j < n; ++j) {
    uint64_t v = r[j] + half;
    v -= from & -static_cast<uint64_t>(v >= from);
    v = close ? v - (p.q & -static_cast<uint64_t>(v >= p.q)) : v % p.q;
    out[j] = sub(v, back, p.q);
  }
}

}  // namespace privinfer::rns
