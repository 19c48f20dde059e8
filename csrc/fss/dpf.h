// FSS: distributed point function on [0, 2^m), f(v) = payload if v = alpha else 0, a payload being w words of
// Z_2^64, outputs shared by addition.
//
// Source: Boyle, Gilboa, Ishai, "Function secret sharing: improvements and extensions", CCS 2016 (IACR eprint
// 2018/707), figure 1, with the output group (Z_2^64)^w; optionally the tree is cut `cut` levels early, at
// leaves of 2^cut outputs each (early termination, as there). The tree reads alpha from its
// lowest bit, so that children stored at i and i + 2^level come out in order of v without any shuffling: the
// leaf at i of a tree of m - cut levels holds the outputs i + part 2^(m - cut), part = 0 .. 2^cut - 1.
//
// PRG: child_left = AES_k0(s) ^ s and child_right = AES_k1(s) ^ s (Matyas-Meyer-Oseas), k_i being AES_tweak
// of the block i. Bit 0 of a child is its control bit t; bits 0 and 1 are cleared in the seed. Word
// q = i 2^cut + part of the payload words under a leaf seed s (i < w) is half q mod 2 of AES_k(q / 2)(s) ^ s.
// As in dcf.h, no seed is both an inner one and a leaf, so the leaves use k0 and k1 again.
//
// Why not fewer calls: figure 1 lets Convert be the leaf seed itself where that is as long as the output, but
// our seeds have 126 free bits, which serves w = 1 alone; and taking one word from the seed and the others
// from AES under it would give half of the seed away with any word of the payload that is known (the constant
// 1 in approx/table.h). A cut saves more: AES calls of a full evaluation, m = 7, bytes of correction
// words after the arrow:
//   w = 1: cut 0  382 -> 120;  1  190 -> 112;  2  126 -> 112;  3   94 -> 128
//   w = 2: cut 0  382 -> 128;  1  254 -> 128;  2  190 -> 144
//   w = 3: cut 0  510 -> 136;  1  318 -> 144
//   w = 4: cut 0  510 -> 144;  1  382 -> 160
//
// Constant time in alpha, payload, seeds and control bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "prg/aes.h"

namespace privinfer::fss {

constexpr int kMaxDomainBits = 16;
constexpr int kMaxWords = 4;
// Words of a leaf: w 2^cut.
constexpr int kMaxLeafWords = 8;

// The fixed keys. The tweak is public, so nothing here needs wiping.
struct DpfKeys {
  prg::KeySchedule key[kMaxLeafWords / 2];

  explicit DpfKeys(const uint8_t* tweak);
};

// What both parties and whoever makes keys agree on: 0 <= m <= 16, 1 <= w <= 4, 0 <= cut <= m,
// w 2^cut <= 8.
struct DpfShape {
  int m, w, cut;

  int depth() const { return m - cut; }
  // Bytes of correction words of one instance.
  size_t stride() const { return 16 * static_cast<size_t>(depth()); }
  size_t leaf_words() const { return static_cast<size_t>(w) << cut; }
  // AES calls of one leaf.
  int pairs() const { return static_cast<int>(leaf_words() + 1) / 2; }
};

// Room for the nodes of one tree, wiped at the end; never less than the kernels' step of 16.
class DpfScratch {
 public:
  explicit DpfScratch(const DpfShape& shape);
  ~DpfScratch();
  DpfScratch(const DpfScratch&) = delete;
  DpfScratch& operator=(const DpfScratch&) = delete;
  uint8_t* data() { return data_; }

 private:
  size_t bytes_;
  uint8_t* data_;
};

// Full evaluations worth a thread, a multiple of the kernels' step.
size_t dpf_chunk(const DpfShape& shape);

// Makes `count` pairs of keys. Inputs: alpha[count], each below 2^m; payload[count][w]; roots[count][2][16],
// uniform and fresh (bits 0 and 1 are ignored); tweak[16], public. Outputs: cw[count][m - cut][16] (bit 0 of
// a word is tCW_L, bit 1 tCW_R, the rest s_CW), last[count][w 2^cut], the correction of the words of a leaf.
// 4 (m - cut) + 2 ceil(w 2^cut / 2) AES calls each.
void dpf_gen(const uint64_t* alpha, const uint64_t* payload, size_t count, const DpfShape& shape,
             const uint8_t* roots, const uint8_t* tweak, uint8_t* cw, uint64_t* last);

// Party `party`'s shares of all outputs: out[count][2^m][w]. Inputs as made by dpf_gen, with roots[count][16]
// that party's. (2 + ceil(w 2^cut / 2)) 2^(m - cut) - 2 AES calls each.
void dpf_eval_full(int party, size_t count, const DpfShape& shape, const uint8_t* roots, const uint8_t* cw,
                   const uint64_t* last, const uint8_t* tweak, uint64_t* out);

}  // namespace privinfer::fss
