// FSS: distributed comparison function, f(x) = [x < alpha], with one-bit outputs shared by XOR.
//
// Source: Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee, "Function secret sharing for mixed-mode and
// fixed-point secure computation", Eurocrypt 2021 (IACR eprint 2020/1392), figure 1, with the output group
// Z_2 and the tree cut at leaves of 128 outputs each (early termination as in Boyle, Gilboa, Ishai, CCS
// 2016).
//
// PRG: child_left = AES_k0(s) ^ s and child_right = AES_k1(s) ^ s (Matyas-Meyer-Oseas), k0 and k1 being
// AES_tweak of the blocks 0 and 1. Bit 0 of a child is its control bit t, bit 1 its value bit v, and both are
// cleared in the seed. The 128 outputs under a leaf seed s are AES_k0(s) ^ s.
//
// Constant time in alpha, seeds and control bits. x is public: it may choose branches and addresses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace privinfer::fss {

constexpr int kMaxBits = 63;

// Levels of the tree above the leaves; 16 bytes of correction word each.
constexpr int levels(int bits) { return bits > 7 ? bits - 7 : 0; }

// Makes `count` pairs of keys. Inputs: alpha[count], each below 2^bits, 0 <= bits <= 63; roots[count][2][16],
// uniform and fresh (bits 0 and 1 are ignored); tweak[16], public. Outputs: cw[count][levels][16] (bit 0 of a
// word is tCW_L, bit 1 tCW_R, the rest s_CW), vcw[count] (bit l is v_CW of level l from the root),
// leaf[count][16]. 4 levels + 2 AES calls each.
void dcf_gen(const uint64_t* alpha, size_t count, int bits, const uint8_t* roots, const uint8_t* tweak,
             uint8_t* cw, uint64_t* vcw, uint8_t* leaf);

// Party `party`'s share of [x < alpha], 0 or 1 a byte: out[count]. Inputs as made by dcf_gen, with
// roots[count][16] that party's; x[count], each below 2^bits. levels + 1 AES calls each.
void dcf_eval(int party, const uint64_t* x, size_t count, int bits, const uint8_t* roots, const uint8_t* cw,
              const uint64_t* vcw, const uint8_t* leaf, const uint8_t* tweak, uint8_t* out);

}  // namespace privinfer::fss
