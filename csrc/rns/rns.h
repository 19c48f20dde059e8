// Rns: polynomials of degree below n over a basis of primes, as CKKS needs them.
//
// An array is limb after limb: element [.., k, i] is coefficient (or NTT value) i modulo the prime of limb k.
// A basis says which prime a limb belongs to; the last prime of the chain is the special one, P. Residues are
// canonical. The NTT form is SEAL's: smallest primitive 2n-th root, output bit-reversed. Nothing here
// branches on residues but the rejection of uniform candidates, which says nothing of those that are kept.
#pragma once

#include <complex>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "rns/prime.h"

namespace privinfer::rns {

using Basis = std::vector<size_t>;

class Rns {
 public:
  // Throws std::invalid_argument unless n is a power of two in 1024..65536 and the primes are distinct, = 1
  // mod 2n and below 2^61.
  Rns(size_t n, const std::vector<uint64_t>& primes);

  size_t n() const { return n_; }
  size_t count() const { return primes_.size(); }
  uint64_t prime(size_t k) const { return primes_[k].q; }
  bool fast() const;

  // `rows` polynomials of basis.size() limbs; in place.
  void ntt(uint64_t* a, size_t rows, const Basis& basis, bool inverse) const;

  // What::kAdd .. : out = a op b; b has one polynomial where `single`, which serves every row.
  enum class What { kAdd, kSub, kMul };
  void combine(What what, const uint64_t* a, const uint64_t* b, bool single, uint64_t* out, size_t rows,
               const Basis& basis) const;
  void scale(const uint64_t* a, const uint64_t* scalars, uint64_t* out, size_t rows,
             const Basis& basis) const;

  // NTT form of a(X^element); element odd, below 2n. `limbs` limbs in all.
  void automorph(const uint64_t* a, uint64_t* out, size_t limbs, uint64_t element) const;

  // Signed coefficients to residues; words are signed 128-bit numbers, low word first.
  void lift(const int64_t* v, uint64_t* out, size_t rows, const Basis& basis) const;
  void lift_wide(const uint64_t* words, uint64_t* out, size_t rows, const Basis& basis) const;
  // Coefficients modulo the product of at most four primes, centred, as signed 128-bit numbers. False where
  // one does not fit.
  bool compose(const uint64_t* a, uint64_t* words, size_t rows, const Basis& basis) const;
  // round(a 2^64 / Q) mod 2^64 of coefficients modulo the product Q: shares modulo Q to shares modulo 2^64,
  // off by one unit a limb at most.
  void to_ring64(const uint64_t* a, uint64_t* out, size_t rows, const Basis& basis) const;

  // AES-CTR streams under a 16-byte key; the same on every path.
  void uniform(const uint8_t* key, uint64_t* out, size_t rows, const Basis& basis) const;
  void ternary(const uint8_t* key, int64_t* out, size_t rows) const;
  void binomial(const uint8_t* key, int64_t* out, size_t rows) const;
  void wide_uniform(const uint8_t* key, uint64_t* words, size_t rows, int bits) const;

  // Key switching of one polynomial of l limbs (data basis 0..l-1), NTT form.
  void decompose(const uint64_t* c, size_t l, uint64_t* digits) const;
  // digits [l, l+1, n] permuted by `element`, times rows 0..l-1 of key [.., 2, K, n]; out [2, l+1, n].
  void key_product(const uint64_t* digits, size_t l, const uint64_t* key, uint64_t element,
                   uint64_t* out) const;
  // Rows of l+1 limbs (extended basis) divided by P, and of l limbs divided by the last of them.
  void mod_down(const uint64_t* a, size_t rows, size_t l, uint64_t* out) const;
  void rescale(const uint64_t* a, size_t rows, size_t l, uint64_t* out) const;

  // out [2, l, n] = sum of x [count, 2, l, n] times y [count, l, n].
  void multiply_sum(const uint64_t* x, const uint64_t* y, size_t count, uint64_t* out,
                    const Basis& basis) const;

  // Canonical embedding; slot i is the value at the primitive 2n-th root to the power 3^i. False where a
  // coefficient would reach 2^62.
  bool encode(const std::complex<double>* slots, double scale, uint64_t* out, size_t rows,
              const Basis& basis) const;
  void decode(const double* coefficients, double scale, std::complex<double>* slots, size_t rows) const;

 private:
  const uint32_t* order_of(uint64_t element) const;
  void divide(const uint64_t* a, size_t rows, size_t l, size_t last, uint64_t* out) const;
  void make_embedding() const;

  size_t n_;
  int log_n_;
  bool narrow_;  // every prime is below 2^50
  std::vector<Prime> primes_;
  // Orders of automorphisms, kept: a rotation is used again and again. Addresses stay valid.
  std::vector<uint32_t> reversed_;
  mutable std::mutex orders_lock_;
  mutable std::map<uint64_t, std::vector<uint32_t>> orders_;
  // Roots of the embedding are made when they are first needed.
  mutable std::once_flag embedding_made_;
  mutable std::vector<std::complex<double>> roots_;
  mutable std::vector<uint32_t> slot_at_, conjugate_at_;
};

}  // namespace privinfer::rns
