// PRG: one vocabulary for vectors of 128-bit blocks, spoken by four kinds of hardware.
//
// Each struct offers the same names: kBlocks blocks in a Vec, kBatch Vecs to keep in flight (kCounterBatch
// where nothing else needs registers), loads and stores (also of blocks `stride` bytes apart), bitwise
// operations, masks made from a bit, sums and sums of products of halves mod 2^64, and AES-128 of N Vecs at
// once under one key or under one of two keys chosen by a PUBLIC bit per block. Kernels are written once
// against these names and included once per path with a matching target attribute (*.inc).
#pragma once

#include <cstring>

#include "prg/aes.h"
#include "prg/bitslice.h"
#ifdef PRIVINFER_X86
#include <immintrin.h>
#endif

namespace privinfer::prg {

struct PortableLanes {
  static constexpr int kBlocks = 4;
  static constexpr int kBatch = 1;
  static constexpr int kCounterBatch = 1;
  struct Vec {
    uint64_t w[8];
  };
  // A sum of products, each half on its own; total() is its value.
  using Sum = Vec;
  using Key = SlicedKey;
  using Select = uint64_t;

  static Key key(const KeySchedule& schedule) {
    Key out;
    for (int r = 0; r < 11; ++r) {
      uint64_t words[8];
      for (int b = 0; b < 4; ++b) std::memcpy(words + 2 * b, schedule.round[r], 16);
      out.round[r] = slice(words);
    }
    return out;
  }
  static Vec load(const uint8_t* at) {
    Vec out;
    std::memcpy(out.w, at, sizeof out.w);
    return out;
  }
  static Vec gather(const uint8_t* at, size_t stride) {
    Vec out;
    for (int b = 0; b < 4; ++b) std::memcpy(out.w + 2 * b, at + b * stride, 16);
    return out;
  }
  static void scatter(uint8_t* at, size_t stride, Vec x) {
    for (int b = 0; b < 4; ++b) std::memcpy(at + b * stride, x.w + 2 * b, 16);
  }
  static void store(uint8_t* at, Vec x) { std::memcpy(at, x.w, sizeof x.w); }
  static Vec block(uint64_t low, uint64_t high) { return {{low, high, low, high, low, high, low, high}}; }
  // Block i holds values[i] in both halves.
  static Vec twice(const uint64_t* v) { return {{v[0], v[0], v[1], v[1], v[2], v[2], v[3], v[3]}}; }
  // Block i holds first + i.
  static Vec counters(uint64_t first) { return {{first, 0, first + 1, 0, first + 2, 0, first + 3, 0}}; }
  static Vec bxor(Vec a, Vec b) {
    for (int i = 0; i < 8; ++i) a.w[i] ^= b.w[i];
    return a;
  }
  static Vec band(Vec a, Vec b) {
    for (int i = 0; i < 8; ++i) a.w[i] &= b.w[i];
    return a;
  }
  static Vec add(Vec a, Vec b) {
    for (int i = 0; i < 8; ++i) a.w[i] += b.w[i];
    return a;
  }
  static Sum no_sum() { return block(0, 0); }
  static Sum multiply_add(Sum sum, Vec a, Vec b) {
    for (int i = 0; i < 8; ++i) sum.w[i] += a.w[i] * b.w[i];
    return sum;
  }
  static Vec total(Sum sum) { return sum; }
  // All ones in the blocks whose bit B (of the low half) is 1, else zero.
  template <int B>
  static Vec mask_of_bit(Vec a) {
    for (int i = 0; i < 8; i += 2) a.w[i] = a.w[i + 1] = 0 - (a.w[i] >> B & 1);
    return a;
  }
  // All ones in the halves whose top bit is 1, else zero.
  static Vec mask_of_top(Vec a) {
    for (int i = 0; i < 8; ++i) a.w[i] = 0 - (a.w[i] >> 63);
    return a;
  }
  // Shifts of each half by 0 <= n < 64.
  static Vec shl(Vec a, int n) {
    for (int i = 0; i < 8; ++i) a.w[i] <<= n;
    return a;
  }
  static Vec shr1(Vec a) {
    for (int i = 0; i < 8; ++i) a.w[i] >>= 1;
    return a;
  }
  // Which of two keys: the second where the top bits of the block are 1.
  static Select select(const Key&, const Key&, Vec top) {
    Select out = 0;
    for (int b = 0; b < 4; ++b) out |= ((0 - (top.w[2 * b] >> 63)) & 0xFFFF) << (16 * b);
    return out;
  }
  template <int N>
  static void encrypt(const Key& k, Vec* s) {
    for (int i = 0; i < N; ++i) encrypt_sliced(k, k, 0, s[i].w);
  }
  template <int N>
  static void encrypt_either(const Key& k0, const Key& k1, const Select* which, Vec* s) {
    for (int i = 0; i < N; ++i) encrypt_sliced(k0, k1, which[i], s[i].w);
  }
};

#ifdef PRIVINFER_X86

#define PRIVINFER_LANE PRIVINFER_TARGET_AVX2 static inline
struct AesniLanes {
  static constexpr int kBlocks = 1;
  static constexpr int kBatch = 8;
  static constexpr int kCounterBatch = 8;
  using Vec = __m128i;
  struct Sum {
    Vec low, cross;
  };
  struct Key {
    Vec round[11];
  };
  using Select = const Key*;

  PRIVINFER_LANE Key key(const KeySchedule& schedule) {
    Key out;
    for (int r = 0; r < 11; ++r) {
      out.round[r] = _mm_load_si128(reinterpret_cast<const __m128i*>(schedule.round[r]));
    }
    return out;
  }
  PRIVINFER_LANE Vec load(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
  PRIVINFER_LANE Vec gather(const uint8_t* at, size_t) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  }
  PRIVINFER_LANE void scatter(uint8_t* at, size_t, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x);
  }
  PRIVINFER_LANE void store(uint8_t* at, Vec x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x); }
  PRIVINFER_LANE Vec block(uint64_t low, uint64_t high) {
    return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
  }
  PRIVINFER_LANE Vec twice(const uint64_t* v) { return _mm_set1_epi64x(static_cast<long long>(v[0])); }
  PRIVINFER_LANE Vec counters(uint64_t first) { return block(first, 0); }
  PRIVINFER_LANE Vec bxor(Vec a, Vec b) { return _mm_xor_si128(a, b); }
  PRIVINFER_LANE Vec band(Vec a, Vec b) { return _mm_and_si128(a, b); }
  PRIVINFER_LANE Vec add(Vec a, Vec b) { return _mm_add_epi64(a, b); }
  // As in ring/matmul.cpp: low halves times low halves, and the two cross products mod 2^32, each summed
  // alone.
  PRIVINFER_LANE Sum no_sum() { return {_mm_setzero_si128(), _mm_setzero_si128()}; }
  PRIVINFER_LANE Sum multiply_add(Sum sum, Vec a, Vec b) {
    return {_mm_add_epi64(sum.low, _mm_mul_epu32(a, b)),
            _mm_add_epi32(sum.cross, _mm_mullo_epi32(_mm_shuffle_epi32(a, 0xB1), b))};
  }
  PRIVINFER_LANE Vec total(Sum sum) {
    const Vec cross = _mm_add_epi32(sum.cross, _mm_srli_epi64(sum.cross, 32));
    return _mm_add_epi64(sum.low, _mm_slli_epi64(cross, 32));
  }
  template <int B>
  PRIVINFER_LANE Vec mask_of_bit(Vec a) {
    return _mm_srai_epi32(_mm_slli_epi32(_mm_shuffle_epi32(a, 0), 31 - B), 31);
  }
  PRIVINFER_LANE Vec mask_of_top(Vec a) { return _mm_cmpgt_epi64(_mm_setzero_si128(), a); }
  PRIVINFER_LANE Vec shl(Vec a, int n) { return _mm_sll_epi64(a, _mm_cvtsi32_si128(n)); }
  PRIVINFER_LANE Vec shr1(Vec a) { return _mm_srli_epi64(a, 1); }
  PRIVINFER_LANE Select select(const Key& k0, const Key& k1, Vec top) {
    return _mm_movemask_pd(_mm_castsi128_pd(top)) != 0 ? &k1 : &k0;
  }
  template <int N>
  PRIVINFER_LANE void encrypt(const Key& k, Vec* s) {
    for (int i = 0; i < N; ++i) s[i] = _mm_xor_si128(s[i], k.round[0]);
    for (int r = 1; r < 10; ++r) {
      for (int i = 0; i < N; ++i) s[i] = _mm_aesenc_si128(s[i], k.round[r]);
    }
    for (int i = 0; i < N; ++i) s[i] = _mm_aesenclast_si128(s[i], k.round[10]);
  }
  template <int N>
  PRIVINFER_LANE void encrypt_either(const Key&, const Key&, const Select* which, Vec* s) {
    for (int i = 0; i < N; ++i) s[i] = _mm_xor_si128(s[i], which[i]->round[0]);
    for (int r = 1; r < 10; ++r) {
      for (int i = 0; i < N; ++i) s[i] = _mm_aesenc_si128(s[i], which[i]->round[r]);
    }
    for (int i = 0; i < N; ++i) s[i] = _mm_aesenclast_si128(s[i], which[i]->round[10]);
  }
};
#undef PRIVINFER_LANE

#define PRIVINFER_LANE PRIVINFER_TARGET_VAES static inline
struct VaesLanes {
  static constexpr int kBlocks = 2;
  static constexpr int kBatch = 4;
  static constexpr int kCounterBatch = 8;
  using Vec = __m256i;
  struct Sum {
    Vec low, cross;
  };
  struct Key {
    Vec round[11];
  };
  using Select = Vec;

  PRIVINFER_LANE Key key(const KeySchedule& schedule) {
    Key out;
    for (int r = 0; r < 11; ++r) {
      out.round[r] =
          _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(schedule.round[r])));
    }
    return out;
  }
  PRIVINFER_LANE Vec load(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  PRIVINFER_LANE Vec gather(const uint8_t* at, size_t stride) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + stride));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  PRIVINFER_LANE void scatter(uint8_t* at, size_t stride, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + stride), _mm256_extracti128_si256(x, 1));
  }
  PRIVINFER_LANE void store(uint8_t* at, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }
  PRIVINFER_LANE Vec block(uint64_t low, uint64_t high) {
    const long long l = static_cast<long long>(low), h = static_cast<long long>(high);
    return _mm256_setr_epi64x(l, h, l, h);
  }
  PRIVINFER_LANE Vec twice(const uint64_t* v) {
    const long long a = static_cast<long long>(v[0]), b = static_cast<long long>(v[1]);
    return _mm256_setr_epi64x(a, a, b, b);
  }
  PRIVINFER_LANE Vec counters(uint64_t first) {
    return _mm256_setr_epi64x(static_cast<long long>(first), 0, static_cast<long long>(first + 1), 0);
  }
  PRIVINFER_LANE Vec bxor(Vec a, Vec b) { return _mm256_xor_si256(a, b); }
  PRIVINFER_LANE Vec band(Vec a, Vec b) { return _mm256_and_si256(a, b); }
  PRIVINFER_LANE Vec add(Vec a, Vec b) { return _mm256_add_epi64(a, b); }
  PRIVINFER_LANE Sum no_sum() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  PRIVINFER_LANE Sum multiply_add(Sum sum, Vec a, Vec b) {
    return {_mm256_add_epi64(sum.low, _mm256_mul_epu32(a, b)),
            _mm256_add_epi32(sum.cross, _mm256_mullo_epi32(_mm256_shuffle_epi32(a, 0xB1), b))};
  }
  PRIVINFER_LANE Vec total(Sum sum) {
    const Vec cross = _mm256_add_epi32(sum.cross, _mm256_srli_epi64(sum.cross, 32));
    return _mm256_add_epi64(sum.low, _mm256_slli_epi64(cross, 32));
  }
  template <int B>
  PRIVINFER_LANE Vec mask_of_bit(Vec a) {
    return _mm256_srai_epi32(_mm256_slli_epi32(_mm256_shuffle_epi32(a, 0), 31 - B), 31);
  }
  PRIVINFER_LANE Vec mask_of_top(Vec a) { return _mm256_cmpgt_epi64(_mm256_setzero_si256(), a); }
  PRIVINFER_LANE Vec shl(Vec a, int n) { return _mm256_sll_epi64(a, _mm_cvtsi32_si128(n)); }
  PRIVINFER_LANE Vec shr1(Vec a) { return _mm256_srli_epi64(a, 1); }
  PRIVINFER_LANE Select select(const Key&, const Key&, Vec top) { return mask_of_top(top); }
  template <int N>
  PRIVINFER_LANE void encrypt(const Key& k, Vec* s) {
    for (int i = 0; i < N; ++i) s[i] = _mm256_xor_si256(s[i], k.round[0]);
    for (int r = 1; r < 10; ++r) {
      for (int i = 0; i < N; ++i) s[i] = _mm256_aesenc_epi128(s[i], k.round[r]);
    }
    for (int i = 0; i < N; ++i) s[i] = _mm256_aesenclast_epi128(s[i], k.round[10]);
  }
  template <int N>
  PRIVINFER_LANE void encrypt_either(const Key& k0, const Key& k1, const Select* which, Vec* s) {
    for (int r = 0; r <= 10; ++r) {
      for (int i = 0; i < N; ++i) {
        const Vec k = _mm256_blendv_epi8(k0.round[r], k1.round[r], which[i]);
        s[i] = r == 0   ? _mm256_xor_si256(s[i], k)
               : r < 10 ? _mm256_aesenc_epi128(s[i], k)
                        : _mm256_aesenclast_epi128(s[i], k);
      }
    }
  }
};
#undef PRIVINFER_LANE

#define PRIVINFER_LANE PRIVINFER_TARGET_AVX512 static inline
struct Avx512Lanes {
  static constexpr int kBlocks = 4;
  static constexpr int kBatch = 4;
  static constexpr int kCounterBatch = 8;
  using Vec = __m512i;
  using Sum = Vec;
  struct Key {
    Vec round[11];
  };
  using Select = __mmask8;

  PRIVINFER_LANE Key key(const KeySchedule& schedule) {
    Key out;
    for (int r = 0; r < 11; ++r) {
      out.round[r] =
          _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(schedule.round[r])));
    }
    return out;
  }
  PRIVINFER_LANE Vec load(const uint8_t* at) { return _mm512_loadu_si512(at); }
  PRIVINFER_LANE Vec gather(const uint8_t* at, size_t stride) {
    __m512i out = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    out = _mm512_inserti64x2(out, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + stride)), 1);
    out = _mm512_inserti64x2(out, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 2 * stride)), 2);
    return _mm512_inserti64x2(out, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 3 * stride)), 3);
  }
  PRIVINFER_LANE void scatter(uint8_t* at, size_t stride, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_castsi512_si128(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + stride), _mm512_extracti64x2_epi64(x, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 2 * stride), _mm512_extracti64x2_epi64(x, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 3 * stride), _mm512_extracti64x2_epi64(x, 3));
  }
  PRIVINFER_LANE void store(uint8_t* at, Vec x) { _mm512_storeu_si512(at, x); }
  PRIVINFER_LANE Vec block(uint64_t low, uint64_t high) {
    const long long l = static_cast<long long>(low), h = static_cast<long long>(high);
    return _mm512_setr_epi64(l, h, l, h, l, h, l, h);
  }
  PRIVINFER_LANE Vec twice(const uint64_t* v) {
    const __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v)));
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), x);
  }
  PRIVINFER_LANE Vec counters(uint64_t first) {
    return _mm512_add_epi64(block(first, 0), _mm512_setr_epi64(0, 0, 1, 0, 2, 0, 3, 0));
  }
  PRIVINFER_LANE Vec bxor(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
  PRIVINFER_LANE Vec band(Vec a, Vec b) { return _mm512_and_si512(a, b); }
  PRIVINFER_LANE Vec add(Vec a, Vec b) { return _mm512_add_epi64(a, b); }
  PRIVINFER_LANE Sum no_sum() { return _mm512_setzero_si512(); }
  PRIVINFER_LANE Sum multiply_add(Sum sum, Vec a, Vec b) {
    return _mm512_add_epi64(sum, _mm512_mullo_epi64(a, b));
  }
  PRIVINFER_LANE Vec total(Sum sum) { return sum; }
  template <int B>
  PRIVINFER_LANE Vec mask_of_bit(Vec a) {
    return _mm512_srai_epi32(_mm512_slli_epi32(_mm512_shuffle_epi32(a, _MM_PERM_AAAA), 31 - B), 31);
  }
  PRIVINFER_LANE Vec mask_of_top(Vec a) { return _mm512_srai_epi64(a, 63); }
  PRIVINFER_LANE Vec shl(Vec a, int n) { return _mm512_sll_epi64(a, _mm_cvtsi32_si128(n)); }
  PRIVINFER_LANE Vec shr1(Vec a) { return _mm512_srli_epi64(a, 1); }
  PRIVINFER_LANE Select select(const Key&, const Key&, Vec top) { return _mm512_movepi64_mask(top); }
  template <int N>
  PRIVINFER_LANE void encrypt(const Key& k, Vec* s) {
    for (int i = 0; i < N; ++i) s[i] = _mm512_xor_si512(s[i], k.round[0]);
    for (int r = 1; r < 10; ++r) {
      for (int i = 0; i < N; ++i) s[i] = _mm512_aesenc_epi128(s[i], k.round[r]);
    }
    for (int i = 0; i < N; ++i) s[i] = _mm512_aesenclast_epi128(s[i], k.round[10]);
  }
  template <int N>
  PRIVINFER_LANE void encrypt_either(const Key& k0, const Key& k1, const Select* which, Vec* s) {
    for (int r = 0; r <= 10; ++r) {
      for (int i = 0; i < N; ++i) {
        const Vec k = _mm512_mask_blend_epi64(which[i], k0.round[r], k1.round[r]);
        s[i] = r == 0   ? _mm512_xor_si512(s[i], k)
               : r < 10 ? _mm512_aesenc_epi128(s[i], k)
                        : _mm512_aesenclast_epi128(s[i], k);
      }
    }
  }
};
#undef PRIVINFER_LANE

#endif  // PRIVINFER_X86

}  // namespace privinfer::prg
