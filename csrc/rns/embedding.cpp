// Embedding: real and complex vectors to polynomials and back, in doubles.
//
// A polynomial with real coefficients is known by its values at the primitive 2n-th roots of unity w^(3^i), i
// below n/2; at their conjugates it has the conjugate values. The transform is the NTT's with complex
// numbers, of which the first layer is for free and one half of the rest enough: c mod X^(n/2) - i has the
// coefficients c_k + i c_(k + n/2), and its roots are the w^e with e = 1 mod 4, which is 3^i for even i and
// -3^i for odd i.
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
    uint64_t exponent = 1;
    for (size_t i = 0; i < n_ / 2; ++i) {
      const uint64_t at = i % 2 ? 2 * n_ - exponent : exponent;
      slot_at_[i] = reverse_bits(static_cast<uint32_t>((at - 1) / 2), log_n_);
      exponent = exponent * 3 % (2 * n_);
    }
  });
}

namespace {

// std::complex products check for infinities; these do not.
inline Complex times(Complex a, Complex b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

// a has n/2 values: the layers with m blocks of 2t each, of which the first half is here.
void forward(Complex* a, size_t n, const std::vector<Complex>& roots) {
  for (size_t m = 2, t = n / 4; t >= 1; m *= 2, t /= 2) {
    for (size_t i = 0; i < m / 2; ++i) {
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
  for (size_t m = n / 2, t = 1; m >= 2; m /= 2, t *= 2) {
    for (size_t i = 0; i < m / 2; ++i) {
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
  const size_t l = basis.size(), half = n_ / 2;
  const double factor = scale / static_cast<double>(half);
  std::vector<char> fits(rows, 1);
  parallel_for(rows, 1, [&](size_t begin, size_t end) {
    std::vector<Complex> values(half);
    std::vector<double> integers(n_);
    for (size_t r = begin; r < end; ++r) {
      for (size_t i = 0; i < half; ++i) {
        const Complex z = slots[r * half + i];
        values[slot_at_[i]] = i % 2 ? std::conj(z) : z;
      }
      backward(values.data(), n_, roots_);
      bool good = true;
      for (size_t i = 0; i < half; ++i) {
        integers[i] = std::nearbyint(values[i].real() * factor);
        integers[half + i] = std::nearbyint(values[i].imag() * factor);
        // Not so where it is no number, either.
        good = good && std::fabs(integers[i]) < 0x1p62 && std::fabs(integers[half + i]) < 0x1p62;
      }
      fits[r] = good;
      for (size_t k = 0; good && k < l; ++k) {
        ntt_integers(integers.data(), out + (r * l + k) * n_, n_, primes_[basis[k]], quick);
      }
    }
  });
  return std::all_of(fits.begin(), fits.end(), [](char good) { return good != 0; });
}

void Rns::decode(const double* coefficients, double scale, Complex* slots, size_t rows) const {
  make_embedding();
  const size_t half = n_ / 2;
  parallel_for(rows, 1, [&](size_t begin, size_t end) {
    std::vector<Complex> values(half);
    for (size_t r = begin; r < end; ++r) {
      const double* c = coefficients + r * n_;
      for (size_t i = 0; i < half; ++i) values[i] = {c[i], c[half + i]};
      forward(values.data(), n_, roots_);
      for (size_t i = 0; i < half; ++i) {
        const Complex z = values[slot_at_[i]] / scale;
        slots[r * half + i] = i % 2 ? std::conj(z) : z;
      }
    }
  });
}

}  // namespace privinfer::rns
