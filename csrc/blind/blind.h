// Blind: the kernels of the blinded comparison of a public x with a secret r, both below 2^bits.
//
// Source: Damgard, Geisler, Kroigaard, "Efficient and secure comparison for on-line auctions", ACISP 2007,
// with additive shares over Z_p in place of homomorphic encryption. Notation as in
// privinfer/protocols/mpc/blinded.py. Positions 0..bits: position 0 is the extra one with x = 1, r = 0,
// position i + 1 is bit i. For p > bits + 2
//     c_i = 1 + (1 - 2 beta)(x_i - r_i) + sum over k > i of (x_k xor r_k)    mod p
// has one zero if [x < r] xor beta, else none; c is shifted cyclically, multiplied by s and shifted by u.
//
// Streams. Values go in blocks of 64, the last one filled up. AES-128 in counter mode, little-endian; block b
// of a purpose reads on from counter purpose * 2^62 + b * 2^28, 16 bits at a time, and skips words that are
// not below the largest multiple of the modulus: so nothing is biased and no thread needs another's place.
// A block would run into the next after 4 GiB of keystream; it needs a few KiB. With T = 64 * positions:
//     residue t < T of Z_p     word t mod T/2 as w: w mod p if t < T/2, else floor(w / p) mod p; w < M p^2
//     unit t < T of Z_p^*      likewise with p - 1 in place of p, plus 1
//     shift v < 64             word v mod positions
//     beta v < 64              bit v of the first 8 bytes
// where t = 64 * position + value. The number of words skipped tells nothing about those kept.
//
// Packing. Each block's residues follow each other, t = width * position + value, `width` being 64 or, in the
// last block, what is left. p = 37: with G = ceil(T / 3) word k < G (16 bits) is t_k + 37 t_(k+G) +
// 37^2 t_(k+2G). p = 53: with G = ceil(T / 4) the bytes k, k + G, k + 2 G are t_k, t_(k+G), t_(k+2G) below
// two bits each of t_(k+3G), lowest first. What is missing counts as 0: one encoding each.
//
// Constant time in r, x, shares, keys and residues.
#pragma once

#include <cstddef>
#include <cstdint>

namespace privinfer::blind {

constexpr size_t kBlock = 64;
constexpr uint64_t kMaxCount = uint64_t{1} << 38;

// p is 37 or 53, and 1 <= bits <= p - 3.
constexpr int kSmallPrime = 37, kLargePrime = 53;
constexpr int max_bits(int p) { return p - 3; }

// Bytes of `count` values of `positions` residues each.
size_t packed_size(size_t count, size_t positions, int p);

// Packed shares r_i - rho_i mod p of the bits of r[count], rho from `key`; `bits` positions a value.
void share_bits(const uint64_t* r, size_t count, int bits, int p, const uint8_t* key, uint8_t* out);

// Packed message of one evaluator; bits + 1 positions a value. `party` 0 draws its shares from `key` and adds
// u, party 1 reads them from `packed` and subtracts u. False if `packed` is malformed.
bool mask(int party, const uint64_t* x, size_t count, int bits, int p, const uint8_t* key,
          const uint8_t* packed, const uint8_t* key_pair, uint8_t* out);

// out[count]: 1 where the sum of both messages has a zero, else 0. False if one is malformed.
bool zero(const uint8_t* first, const uint8_t* second, size_t count, int bits, int p, uint8_t* out);

// out[count]: beta of each value.
void beta(const uint8_t* key_pair, size_t count, uint8_t* out);

// Whether `data` is the packing of some residues.
bool valid(const uint8_t* data, size_t count, size_t positions, int p);

}  // namespace privinfer::blind
