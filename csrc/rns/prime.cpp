#include "rns/prime.h"

#include <stdexcept>

namespace privinfer::rns {

Prime::Prime(uint64_t modulus) : q(modulus) {
  const u128 all = ~static_cast<u128>(0);
  const u128 quotient = all / q;  // floor((2^128 - 1) / q) = floor(2^128 / q), for q is no power of two
  ratio[0] = static_cast<uint64_t>(quotient);
  ratio[1] = static_cast<uint64_t>(quotient >> 64);
}

uint64_t power(uint64_t base, uint64_t exponent, const Prime& p) {
  uint64_t r = 1;
  for (base %= p.q; exponent; exponent >>= 1) {
    if (exponent & 1) r = mul(r, base, p);
    base = mul(base, base, p);
  }
  return r;
}

namespace {

bool is_prime(uint64_t q, const Prime& p) {
  uint64_t odd = q - 1;
  int twos = 0;
  while (odd % 2 == 0) odd /= 2, ++twos;
  // These witnesses decide every number below 2^64.
  for (uint64_t a : {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37}) {
    if (q % a == 0) return q == a;
    uint64_t x = power(a, odd, p);
    if (x == 1 || x == q - 1) continue;
    int k = 1;
    for (; k < twos; ++k) {
      x = mul(x, x, p);
      if (x == q - 1) break;
    }
    if (k == twos) return false;
  }
  return true;
}

// The smallest primitive 2n-th root of unity: SEAL's choice, so that NTT forms agree.
uint64_t smallest_root(size_t n, const Prime& p) {
  const uint64_t order = 2 * static_cast<uint64_t>(n);
  uint64_t root = 0;
  for (uint64_t g = 2; root == 0; ++g) {
    const uint64_t candidate = power(g, (p.q - 1) / order, p);
    if (power(candidate, n, p) == p.q - 1) root = candidate;
  }
  const uint64_t square = mul(root, root, p);
  uint64_t least = root;
  for (size_t k = 1; k < n; ++k) {
    root = mul(root, square, p);
    if (root < least) least = root;
  }
  return least;
}

double centred(uint64_t w, uint64_t q) {
  return w > q / 2 ? -static_cast<double>(q - w) : static_cast<double>(w);
}

}  // namespace

void make_tables(Prime* p, size_t n) {
  const uint64_t q = p->q;
  if (q >= (uint64_t{1} << 61) || q < 3 || (q - 1) % (2 * n) != 0 || !is_prime(q, *p)) {
    throw std::invalid_argument("primes must be primes = 1 mod 2n below 2^61");
  }
  int bits = 0;
  while ((size_t{1} << bits) < n) ++bits;
  const uint64_t root = smallest_root(n, *p);
  const uint64_t inverse = power(root, q - 2, *p);
  for (auto* table : {&p->root, &p->root_shoup, &p->inverse_root, &p->inverse_root_shoup}) table->resize(n);
  p->wide_root.resize(n);
  p->wide_inverse_root.resize(n);
  uint64_t w = 1, v = 1;
  for (size_t k = 0; k < n; ++k) {
    const size_t at = reverse_bits(static_cast<uint32_t>(k), bits);
    p->root[at] = w;
    p->root_shoup[at] = shoup(w, q);
    p->wide_root[at] = centred(w, q);
    p->inverse_root[at] = v;
    p->inverse_root_shoup[at] = shoup(v, q);
    p->wide_inverse_root[at] = centred(v, q);
    w = mul(w, root, *p);
    v = mul(v, inverse, *p);
  }
  p->n_inverse = power(n, q - 2, *p);
  p->n_inverse_shoup = shoup(p->n_inverse, q);
  p->wide_n_inverse = centred(p->n_inverse, q);
}

}  // namespace privinfer::rns
