// Limb: operations on one limb (n residues modulo one prime), on the portable and on the vector path.
//
// All of them take and give canonical residues, so both paths give the same numbers. `fast` says that the
// vector path may be used: the CPU has AVX2 and FMA, and the prime is below 2^50.
#pragma once

#include "rns/prime.h"

namespace privinfer::rns {

bool vector_path();  // what the CPU and the chosen path allow

// n a power of two >= 16. Harvey's butterflies in SEAL's order: output bit-reversed. out may be a.
void ntt(const uint64_t* a, uint64_t* out, size_t n, const Prime& p, bool fast);
void intt(const uint64_t* a, uint64_t* out, size_t n, const Prime& p, bool fast);

// NTT form modulo p of other coefficients: r in [0, from), from odd, centred to [-from/2, from/2]; integers
// below 2^62 in magnitude, as doubles. The fast path takes from < 2^50.
void ntt_centred(const uint64_t* r, uint64_t from, uint64_t* out, size_t n, const Prime& p, bool fast);
void ntt_integers(const double* v, uint64_t* out, size_t n, const Prime& p, bool fast);

// out may be a or b.
void add(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast);
void sub(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast);
void mul(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast);
void scale(const uint64_t* a, uint64_t w, uint64_t* out, size_t n, const Prime& p, bool fast);

// Two sums that share their second factor: out[0] = sum over k of x_k s_k, out[1] = sum of y_k s_k, with
// x_k = x + k * step and so on. Where `order` is given, it permutes the shared one: s_k[order[i]] stands for
// s_k[i]. It has to be (a part of) the order of an automorphism, which takes four aligned positions to such
// four.
struct Sum {
  const uint64_t *x, *y, *shared;
  size_t step, shared_step, count;
  const uint32_t* order;  // nullptr: none
};
void multiply_sum(const Sum& sum, uint64_t* const out[2], size_t n, const Prime& p, bool fast);

// out = (a - r) w: for the division by a prime that goes.
void sub_scale(const uint64_t* a, const uint64_t* r, uint64_t w, uint64_t* out, size_t n, const Prime& p,
               bool fast);

}  // namespace privinfer::rns
