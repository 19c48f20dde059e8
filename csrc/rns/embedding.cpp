// Embedding: real and complex vectors to polynomials and back, in doubles.
//
// A polynomial with real coefficients is known by its values at the primitive 2n-th roots of unity w^(3^i), i
// below n/2; at their conjugates it has the conjugate values. The transform is the NTT's with complex
// numbers.
#include <algorithm>
#include <cmath>

#include "rns/limb.h"
#include "rns/rns.h"
#include "threads.h"

namespace privinfer::rns {

using Complex = std::complex<double>;

void Rns::make_embedding() const {
  std::call_once(embedding_made_, [&] {
    roots_.resize(n_);
    for (size_t k = 0; k < n_; ++k) {
      const double angle = M_PI * static_cast<double>(k) / static_cast<double>(n_);
      roots_[reverse_bits(static_cast<uint32_t>(k), log_n_)] = {std::cos(angle), std::sin(angle)};
    }
    slot_at_.resize(n_ / 2);
    conjugate_at_.resize(n_ / 2);
    uint64_t exponent = 1;
    for (size_t i = 0; i < n_ / 2; ++i) {
      slot_at_[i] = reverse_bits(static_cast<uint32_t>((exponent - 1) / 2), log_n_);
      conjugate_at_[i] = reverse_bits(static_cast<uint32_t>((2 * n_ - exponent - 1) / 2), log_n_);
      exponent = exponent * 3 % (2 * n_);
    }
  });
}

namespace {

// std::complex products check for infinities; these do not.
inline Complex times(Complex a, Complex b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

void forward(Complex* a, size_t n, const std::vector<Complex>& roots) {
  for (size_t m = 1, t = n / 2; m < n; m *= 2, t /= 2) {
    for (size_t i = 0; i < m; ++i) {
      const Complex w = roots[m + i];
      Complex *x = a + 2 * i * t, *y = x + t;
      for (size_t j = 0; j < t; ++j) {
        const Complex u = x[j], v = times(y[j], w);
        x[j] = u + v;
        y[j] = u - v;
      }
    }
  }
}

void backward(Complex* a, size_t n, const std::vector<Complex>& roots) {
  for (size_t m = n / 2, t = 1; m >= 1; m /= 2, t *= 2) {
    for (size_t i = 0; i < m; ++i) {
      const Complex w = std::conj(roots[m + i]);
      Complex *x = a + 2 * i * t, *y = x + t;
      for (size_t j = 0; j < t; ++j) {
        const Complex u = x[j], v = y[j];
        x[j] = u + v;
        y[j] = times(u - v, w);
      }
    }
  }
}

}  // namespace

bool Rns::encode(const Complex* slots, double scale, uint64_t* out, size_t rows, const Basis& basis) const {
  make_embedding();
  const bool quick = fast();
  const size_t l = basis.size();
  std::vector<char> fits(rows, 1);
  parallel_for(rows, 1, [&](size_t begin, size_t end) {
    std::vector<Complex> values(n_);
    std::vector<int64_t> integers(n_);
    for (size_t r = begin; r < end; ++r) {
      for (size_t i = 0; i < n_ / 2; ++i) {
        const Complex z = slots[r * (n_ / 2) + i];
        values[slot_at_[i]] = z;
        values[conjugate_at_[i]] = std::conj(z);
      }
      backward(values.data(), n_, roots_);
      const double factor = scale / static_cast<double>(n_);
      for (size_t i = 0; i < n_; ++i) {
        const double c = std::nearbyint(values[i].real() * factor);
        if (!(std::fabs(c) < 0x1p62)) {  // also where it is no number
          fits[r] = 0;
          break;
        }
        integers[i] = static_cast<int64_t>(c);
      }
      if (!fits[r]) continue;
      for (size_t k = 0; k < l; ++k) {
        const Prime& p = primes_[basis[k]];
        uint64_t* to = out + (r * l + k) * n_;
        for (size_t i = 0; i < n_; ++i) {
          const int64_t x = integers[i];
          const uint64_t sign = -static_cast<uint64_t>(x < 0);
          const uint64_t m = reduce((static_cast<uint64_t>(x) ^ sign) - sign, p);
          to[i] = (m & ~sign) | (rns::sub(0, m, p.q) & sign);
        }
        rns::ntt(to, n_, p, quick);
      }
    }
  });
  return std::all_of(fits.begin(), fits.end(), [](char good) { return good != 0; });
}

void Rns::decode(const double* coefficients, double scale, Complex* slots, size_t rows) const {
  make_embedding();
  parallel_for(rows, 1, [&](size_t begin, size_t end) {
    std::vector<Complex> values(n_);
    for (size_t r = begin; r < end; ++r) {
      for (size_t i = 0; i < n_; ++i) values[i] = coefficients[r * n_ + i];
      forward(values.data(), n_, roots_);
      for (size_t i = 0; i < n_ / 2; ++i) slots[r * (n_ / 2) + i] = values[slot_at_[i]] / scale;
    }
  });
}

}  // namespace privinfer::rns
