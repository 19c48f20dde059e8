// Approx: a table of 2^m polynomials read at a masked position, on the distributed point function of
// fss/dpf.h.
//
// A value x is known only as xhat = x + r, r being the mask. With alpha = (r >> s) mod 2^m, rho = r mod 2^s
// and the payload (1, rho, .., rho^degree) at alpha, both parties' outputs add up, mod 2^64, to
//   sum_k C_k[u] (beta - rho)^k   with beta = xhat mod 2^s, u = ((xhat >> s) - alpha) mod 2^m:
// party's share is sum_{j <= k} binom(k, j) beta^(k - j) (-1)^j A_kj, A_kj = sum_v C_k[u + alpha - v] P_j(v),
// P_j(v) being its share of word j at v. The sums A_kj are taken over the leaves as they come (a tree at a
// time, in cache); beta comes in once a value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fss/dpf.h"

namespace privinfer::approx {

constexpr int kMaxTableBits = 12;
constexpr int kMaxLowBits = 40;
constexpr int kMaxDegree = fss::kMaxWords - 1;

// Party `party`'s output shares: out[count]. xhat[count], public, of which bits s .. s + m - 1 and below are
// used; coefficients[degree + 1][2^m], public, any values; keys as made by fss::dpf_gen with shape.w =
// degree + 1 and 1 <= shape.m <= 12, roots[count][16] being that party's; 0 <= s <= 40. AES calls as in
// fss::dpf_eval_full. Constant time in the keys.
void table_eval(int party, const uint64_t* xhat, size_t count, const fss::DpfShape& shape, int s,
                const uint64_t* coefficients, const uint8_t* roots, const uint8_t* cw, const uint64_t* last,
                const uint8_t* tweak, uint64_t* out);

}  // namespace privinfer::approx
