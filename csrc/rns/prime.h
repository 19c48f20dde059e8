// Prime: one prime of an RNS basis with everything its arithmetic needs; scalar operations of the portable
// path.
//
// Residues are canonical, [0, q), wherever two files meet. q < 2^61 here; the vector path (vector.h) takes q
// < 2^50.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace privinfer::rns {

using u128 = unsigned __int128;

struct Prime {
  uint64_t q = 0;
  uint64_t ratio[2] = {0, 0};  // floor(2^128 / q), low word first
  uint64_t two64 = 0;          // 2^64 mod q

  // Powers of the smallest primitive 2n-th root, bit-reversed, and of its inverse; Shoup quotients floor(w
  // 2^64 / q).
  std::vector<uint64_t> root, root_shoup, inverse_root, inverse_root_shoup;
  uint64_t n_inverse = 0, n_inverse_shoup = 0;

  // The same for the vector path: centred to |w| <= q / 2, exact in doubles.
  std::vector<double> wide_root, wide_inverse_root;
  double wide_n_inverse = 0;

  explicit Prime(uint64_t q);
};

// Any 128-bit z; result in [0, q). Barrett with a 128-bit quotient estimate, off by one at most.
inline uint64_t reduce(u128 z, const Prime& p) {
  const uint64_t lo = static_cast<uint64_t>(z), hi = static_cast<uint64_t>(z >> 64);
  const uint64_t carry = static_cast<uint64_t>((static_cast<u128>(lo) * p.ratio[0]) >> 64);
  const u128 a = static_cast<u128>(lo) * p.ratio[1] + carry;
  const u128 b = static_cast<u128>(hi) * p.ratio[0] + static_cast<uint64_t>(a);
  const uint64_t quotient = hi * p.ratio[1] + static_cast<uint64_t>(a >> 64) + static_cast<uint64_t>(b >> 64);
  uint64_t r = lo - quotient * p.q;
  r -= p.q & -static_cast<uint64_t>(r >= p.q);
  return r - (p.q & -static_cast<uint64_t>(r >= p.q));
}

// Factors below 2^64 each whose product is below 2^128: always.
inline uint64_t mul(uint64_t a, uint64_t b, const Prime& p) { return reduce(static_cast<u128>(a) * b, p); }

// a, b in [0, q).
inline uint64_t add(uint64_t a, uint64_t b, uint64_t q) {
  const uint64_t r = a + b;
  return r - (q & -static_cast<uint64_t>(r >= q));
}
inline uint64_t sub(uint64_t a, uint64_t b, uint64_t q) {
  return a - b + (q & -static_cast<uint64_t>(a < b));
}

// Any a below 2^64; w in [0, q); result in [0, q).
inline uint64_t mul_shoup(uint64_t a, uint64_t w, uint64_t w_shoup, uint64_t q) {
  const uint64_t quotient = static_cast<uint64_t>((static_cast<u128>(a) * w_shoup) >> 64);
  const uint64_t r = a * w - quotient * q;
  return r - (q & -static_cast<uint64_t>(r >= q));
}
inline uint64_t shoup(uint64_t w, uint64_t q) {
  return static_cast<uint64_t>((static_cast<u128>(w) << 64) / q);
}

uint64_t power(uint64_t base, uint64_t exponent, const Prime& p);

// Fills the tables for degree n. Throws std::invalid_argument unless q is a prime = 1 mod 2n.
void make_tables(Prime* p, size_t n);

inline uint32_t reverse_bits(uint32_t x, int bits) {
  uint32_t r = 0;
  for (int k = 0; k < bits; ++k) r |= ((x >> k) & 1u) << (bits - 1 - k);
  return r;
}

}  // namespace privinfer::rns
