// Limb: operations on one limb (n residues modulo one prime), on the portable and on the vector path.
//
// All of them take and give canonical residues, so both paths give the same numbers. `fast` says that the
// vector path may be used: the CPU has AVX2 and FMA, and the prime is below 2^50.
#pragma once

#include "rns/prime.h"

namespace privinfer::rns {

bool vector_path();  // what the CPU and the chosen path allow

// In place; n a power of two >= 16. Harvey's butterflies in SEAL's order: output bit-reversed.
void ntt(uint64_t* a, size_t n, const Prime& p, bool fast);
void intt(uint64_t* a, size_t n, const Prime& p, bool fast);

// out may be a or b.
void add(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast);
void sub(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast);
void mul(const uint64_t* a, const uint64_t* b, uint64_t* out, size_t n, const Prime& p, bool fast);
void scale(const uint64_t* a, uint64_t w, uint64_t* out, size_t n, const Prime& p, bool fast);

// out = sum over k of x_k * y_k, with x_k = x + k * x_step and so on; `order`, where given, permutes x:
// element i of the product is x[order[i]] y[i]. Two results share one x or one y: out[0] = sum x0 y0, out[1]
// = sum x1 y1.
struct Sum {
  const uint64_t* x[2];
  const uint64_t* y[2];
  size_t x_step, y_step, count;
  const uint32_t* order;  // nullptr: none
};
void multiply_sum(const Sum& sum, uint64_t* const out[2], size_t n, const Prime& p, bool fast);

// out = (a - r) w: for the division by a prime that goes.
void sub_scale(const uint64_t* a, const uint64_t* r, uint64_t w, uint64_t* out, size_t n, const Prime& p,
               bool fast);

// r in [0, from), centred to (-from/2, from/2], to residues modulo p.
void centre(const uint64_t* r, uint64_t from, uint64_t* out, size_t n, const Prime& p);

}  // namespace privinfer::rns
