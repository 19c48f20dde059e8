// PRG: portable AES, four blocks at once in bit planes. Constant time: only and, xor, not and fixed shifts.
//
// Bit i of plane p is bit p of byte i of the 64 bytes of four blocks, so byte (row r, column c) of block b is
// bit 16 b + 4 c + r of each plane.
#pragma once

#include <cstdint>

#include "prg/aes.h"

namespace privinfer::prg {

struct Planes {
  uint64_t p[8];
};

// Transposes 8 words of 8 bytes into planes, or planes into words: bits within words, then bytes across
// words.
inline void transpose_bits(uint64_t* w) {
  for (int i = 0; i < 8; ++i) {
    uint64_t x = w[i];
    uint64_t t = (x ^ x >> 7) & 0x00AA00AA00AA00AAu;
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & 0x0000CCCC0000CCCCu;
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & 0x00000000F0F0F0F0u;
    w[i] = x ^ t ^ t << 28;
  }
}

inline void transpose_bytes(uint64_t* w) {
  constexpr uint64_t kMask[3] = {0x00FF00FF00FF00FFu, 0x0000FFFF0000FFFFu, 0x00000000FFFFFFFFu};
  for (int stage = 0; stage < 3; ++stage) {
    const int step = 1 << stage;
    const int shift = 8 * step;
    for (int i = 0; i < 8; ++i) {
      if (i & step) continue;
      const uint64_t t = (w[i] >> shift ^ w[i + step]) & kMask[stage];
      w[i + step] ^= t;
      w[i] ^= t << shift;
    }
  }
}

inline Planes slice(const uint64_t* words) {
  Planes out;
  for (int i = 0; i < 8; ++i) out.p[i] = words[i];
  transpose_bits(out.p);
  transpose_bytes(out.p);
  return out;
}

inline void unslice(Planes planes, uint64_t* words) {
  transpose_bytes(planes.p);
  transpose_bits(planes.p);
  for (int i = 0; i < 8; ++i) words[i] = planes.p[i];
}

// The S-box on every byte: the 115-gate circuit of Boyar and Peralta (IACR eprint 2011/332), names as there.
inline void sub_bytes(Planes* s) {
  const uint64_t x0 = s->p[7], x1 = s->p[6], x2 = s->p[5], x3 = s->p[4];
  const uint64_t x4 = s->p[3], x5 = s->p[2], x6 = s->p[1], x7 = s->p[0];

  // Top linear transformation.
  const uint64_t y14 = x3 ^ x5, y13 = x0 ^ x6, y9 = x0 ^ x3, y8 = x0 ^ x5;
  const uint64_t t0 = x1 ^ x2, y1 = t0 ^ x7, y4 = y1 ^ x3, y12 = y13 ^ y14;
  const uint64_t y2 = y1 ^ x0, y5 = y1 ^ x6, y3 = y5 ^ y8, t1 = x4 ^ y12;
  const uint64_t y15 = t1 ^ x5, y20 = t1 ^ x1, y6 = y15 ^ x7, y10 = y15 ^ t0;
  const uint64_t y11 = y20 ^ y9, y7 = x7 ^ y11, y17 = y10 ^ y11, y19 = y10 ^ y8;
  const uint64_t y16 = t0 ^ y11, y21 = y13 ^ y16, y18 = x0 ^ y16;

  // Inversion in GF(2^8) through GF(2^4).
  const uint64_t t2 = y12 & y15, t3 = y3 & y6, t4 = t3 ^ t2, t5 = y4 & x7, t6 = t5 ^ t2;
  const uint64_t t7 = y13 & y16, t8 = y5 & y1, t9 = t8 ^ t7, t10 = y2 & y7, t11 = t10 ^ t7;
  const uint64_t t12 = y9 & y11, t13 = y14 & y17, t14 = t13 ^ t12, t15 = y8 & y10, t16 = t15 ^ t12;
  const uint64_t t17 = t4 ^ t14, t18 = t6 ^ t16, t19 = t9 ^ t14, t20 = t11 ^ t16;
  const uint64_t t21 = t17 ^ y20, t22 = t18 ^ y19, t23 = t19 ^ y21, t24 = t20 ^ y18;
  const uint64_t t25 = t21 ^ t22, t26 = t21 & t23, t27 = t24 ^ t26, t28 = t25 & t27, t29 = t28 ^ t22;
  const uint64_t t30 = t23 ^ t24, t31 = t22 ^ t26, t32 = t31 & t30, t33 = t32 ^ t24;
  const uint64_t t34 = t23 ^ t33, t35 = t27 ^ t33, t36 = t24 & t35, t37 = t36 ^ t34;
  const uint64_t t38 = t27 ^ t36, t39 = t29 & t38, t40 = t25 ^ t39;
  const uint64_t t41 = t40 ^ t37, t42 = t29 ^ t33, t43 = t29 ^ t40, t44 = t33 ^ t37, t45 = t42 ^ t41;
  const uint64_t z0 = t44 & y15, z1 = t37 & y6, z2 = t33 & x7, z3 = t43 & y16, z4 = t40 & y1;
  const uint64_t z5 = t29 & y7, z6 = t42 & y11, z7 = t45 & y17, z8 = t41 & y10, z9 = t44 & y12;
  const uint64_t z10 = t37 & y3, z11 = t33 & y4, z12 = t43 & y13, z13 = t40 & y5, z14 = t29 & y2;
  const uint64_t z15 = t42 & y9, z16 = t45 & y14, z17 = t41 & y8;

  // Bottom linear transformation.
  const uint64_t t46 = z15 ^ z16, t47 = z10 ^ z11, t48 = z5 ^ z13, t49 = z9 ^ z10, t50 = z2 ^ z12;
  const uint64_t t51 = z2 ^ z5, t52 = z7 ^ z8, t53 = z0 ^ z3, t54 = z6 ^ z7, t55 = z16 ^ z17;
  const uint64_t t56 = z12 ^ t48, t57 = t50 ^ t53, t58 = z4 ^ t46, t59 = z3 ^ t54, t60 = t46 ^ t57;
  const uint64_t t61 = z14 ^ t57, t62 = t52 ^ t58, t63 = t49 ^ t58, t64 = z4 ^ t59, t65 = t61 ^ t62;
  const uint64_t t66 = z1 ^ t63, t67 = t64 ^ t65;
  const uint64_t s3 = t53 ^ t66;
  s->p[7] = t59 ^ t63;
  s->p[6] = t64 ^ ~s3;
  s->p[5] = t55 ^ ~t67;
  s->p[4] = s3;
  s->p[3] = t51 ^ t66;
  s->p[2] = t47 ^ t65;
  s->p[1] = t56 ^ ~t62;
  s->p[0] = t48 ^ ~t60;
}

// Row r of each block moves r columns to the left.
inline void shift_rows(Planes* s) {
  for (uint64_t& x : s->p) {
    x = (x & 0x1111111111111111u) | (x >> 4 & 0x0222022202220222u) | (x << 12 & 0x2000200020002000u) |
        (x >> 8 & 0x0044004400440044u) | (x << 8 & 0x4400440044004400u) | (x >> 12 & 0x0008000800080008u) |
        (x << 4 & 0x8880888088808880u);
  }
}

// b_r = 2 (a_r + a_{r+1}) + a_{r+1} + (a_{r+2} + a_{r+3}), sums being xor and indices mod 4.
inline void mix_columns(Planes* s) {
  Planes next, pair;
  for (int i = 0; i < 8; ++i) {
    const uint64_t x = s->p[i];
    next.p[i] = (x >> 1 & 0x7777777777777777u) | (x << 3 & 0x8888888888888888u);
    pair.p[i] = x ^ next.p[i];
  }
  for (int i = 0; i < 8; ++i) {
    const uint64_t d = pair.p[i];
    const uint64_t opposite = (d >> 2 & 0x3333333333333333u) | (d << 2 & 0xCCCCCCCCCCCCCCCCu);
    // Doubling shifts the planes up and folds plane 7 into the bits of 0x1B.
    const uint64_t shifted = i == 0 ? 0 : pair.p[i - 1];
    const uint64_t folded = (0x1B >> i & 1) != 0 ? pair.p[7] : 0;
    s->p[i] = shifted ^ folded ^ next.p[i] ^ opposite;
  }
}

struct SlicedKey {
  Planes round[11];
};

// Encrypts four blocks under per-block keys: k1 where the 16 bits of a block in `select` are set, else k0.
inline void encrypt_sliced(const SlicedKey& k0, const SlicedKey& k1, uint64_t select, uint64_t* words) {
  Planes s = slice(words);
  for (int round = 0; round <= 10; ++round) {
    if (round > 0) {
      sub_bytes(&s);
      shift_rows(&s);
      if (round < 10) mix_columns(&s);
    }
    for (int i = 0; i < 8; ++i) {
      const uint64_t a = k0.round[round].p[i];
      s.p[i] ^= a ^ (select & (a ^ k1.round[round].p[i]));
    }
  }
  unslice(s, words);
}

}  // namespace privinfer::prg
