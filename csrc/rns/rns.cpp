#include "rns/rns.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "prg/aes.h"
#include "rns/limb.h"
#include "threads.h"

namespace privinfer::rns {

Rns::Rns(size_t n, const std::vector<uint64_t>& primes) : n_(n), log_n_(0) {
  while ((size_t{1} << log_n_) < n) ++log_n_;
  if (n < 1024 || n > 65536 || (size_t{1} << log_n_) != n) {
    throw std::invalid_argument("n must be a power of two in 1024..65536");
  }
  if (primes.empty() || primes.size() > 64) throw std::invalid_argument("there must be 1 to 64 primes");
  for (uint64_t q : primes) {
    if (std::count(primes.begin(), primes.end(), q) != 1)
      throw std::invalid_argument("primes must be distinct");
    if (q < 2) throw std::invalid_argument("primes must be primes = 1 mod 2n below 2^61");
    primes_.emplace_back(q);
  }
  parallel_for(primes_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t k = begin; k < end; ++k) make_tables(&primes_[k], n_);
  });
  reversed_.resize(n_);
  for (size_t i = 0; i < n_; ++i) reversed_[i] = reverse_bits(static_cast<uint32_t>(i), log_n_);
  narrow_ = std::all_of(primes.begin(), primes.end(), [](uint64_t q) { return q < (uint64_t{1} << 50); });
}

bool Rns::fast() const { return narrow_ && vector_path(); }

void Rns::ntt(uint64_t* a, size_t rows, const Basis& basis, bool inverse) const {
  const bool quick = fast();
  parallel_for(rows * basis.size(), 1, [&](size_t begin, size_t end) {
    for (size_t k = begin; k < end; ++k) {
      const Prime& p = primes_[basis[k % basis.size()]];
      if (inverse) {
        intt(a + k * n_, n_, p, quick);
      } else {
        rns::ntt(a + k * n_, n_, p, quick);
      }
    }
  });
}

void Rns::combine(What what, const uint64_t* a, const uint64_t* b, bool single, uint64_t* out, size_t rows,
                  const Basis& basis) const {
  const bool quick = fast();
  const size_t l = basis.size();
  parallel_for(rows * l, std::max<size_t>(1, 65536 / n_), [&](size_t begin, size_t end) {
    for (size_t k = begin; k < end; ++k) {
      const Prime& p = primes_[basis[k % l]];
      const uint64_t *x = a + k * n_, *y = b + (single ? k % l : k) * n_;
      if (what == What::kAdd) {
        add(x, y, out + k * n_, n_, p, quick);
      } else if (what == What::kSub) {
        sub(x, y, out + k * n_, n_, p, quick);
      } else {
        mul(x, y, out + k * n_, n_, p, quick);
      }
    }
  });
}

void Rns::scale(const uint64_t* a, const uint64_t* scalars, uint64_t* out, size_t rows,
                const Basis& basis) const {
  const bool quick = fast();
  const size_t l = basis.size();
  for (size_t k = 0; k < rows * l; ++k) {
    rns::scale(a + k * n_, scalars[k % l], out + k * n_, n_, primes_[basis[k % l]], quick);
  }
}

namespace {

// `sizes` has every bit that a magnitude (of a negative x: of ~x) has. Errors and keys are far below every
// prime.
void lift_row(const int64_t* v, uint64_t sizes, uint64_t* out, size_t n, const Prime& p) {
  if (sizes < p.q / 2) {
    for (size_t i = 0; i < n; ++i) {
      out[i] = static_cast<uint64_t>(v[i]) + (p.q & static_cast<uint64_t>(v[i] >> 63));
    }
    return;
  }
  for (size_t i = 0; i < n; ++i) {
    const uint64_t sign = static_cast<uint64_t>(v[i] >> 63);
    const uint64_t m = reduce((static_cast<uint64_t>(v[i]) ^ sign) - sign, p);
    out[i] = (m & ~sign) | (sub(0, m, p.q) & sign);
  }
}

}  // namespace

// Position i holds the value at root^(2 rev(i) + 1); X -> X^element moves it to the exponent times element.
const uint32_t* Rns::order_of(uint64_t element) const {
  const std::lock_guard<std::mutex> guard(orders_lock_);
  std::vector<uint32_t>& order = orders_[element];
  if (order.empty()) {
    order.resize(n_);
    const uint64_t mask = 2 * n_ - 1;
    for (size_t i = 0; i < n_; ++i) {
      const uint64_t exponent = 2 * static_cast<uint64_t>(reversed_[i]) + 1;
      order[i] = reversed_[(((exponent * element) & mask) - 1) / 2];
    }
  }
  return order.data();
}

void Rns::automorph(const uint64_t* a, uint64_t* out, size_t limbs, uint64_t element) const {
  const uint32_t* order = order_of(element);
  for (size_t k = 0; k < limbs; ++k) {
    for (size_t i = 0; i < n_; ++i) out[k * n_ + i] = a[k * n_ + order[i]];
  }
}

void Rns::lift(const int64_t* v, uint64_t* out, size_t rows, const Basis& basis) const {
  const size_t l = basis.size();
  parallel_for(rows, std::max<size_t>(1, 65536 / n_), [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      const int64_t* from = v + r * n_;
      uint64_t sizes = 0;
      for (size_t i = 0; i < n_; ++i) sizes |= static_cast<uint64_t>(from[i] < 0 ? ~from[i] : from[i]);
      for (size_t k = 0; k < l; ++k) lift_row(from, sizes, out + (r * l + k) * n_, n_, primes_[basis[k]]);
    }
  });
}

void Rns::lift_wide(const uint64_t* words, uint64_t* out, size_t rows, const Basis& basis) const {
  const size_t l = basis.size();
  parallel_for(rows * l, 1, [&](size_t begin, size_t end) {
    for (size_t at = begin; at < end; ++at) {
      const Prime& p = primes_[basis[at % l]];
      const uint64_t* from = words + at / l * 2 * n_;
      uint64_t* to = out + at * n_;
      for (size_t i = 0; i < n_; ++i) {
        const u128 x = (static_cast<u128>(from[2 * i + 1]) << 64) | from[2 * i];
        const u128 sign = -static_cast<u128>(x >> 127);
        const uint64_t m = reduce((x ^ sign) - sign, p);
        const uint64_t negative = static_cast<uint64_t>(sign);
        to[i] = (m & ~negative) | (sub(0, m, p.q) & negative);
      }
    }
  });
}

namespace {

// Little-endian numbers of five words: room for a product of four primes below 2^61, and a word to spare.
struct Wide {
  uint64_t w[5] = {0, 0, 0, 0, 0};
};

// a += b m
void add_product(Wide* a, const Wide& b, uint64_t m) {
  u128 carry = 0;
  for (int k = 0; k < 5; ++k) {
    carry += static_cast<u128>(b.w[k]) * m + a->w[k];
    a->w[k] = static_cast<uint64_t>(carry);
    carry >>= 64;
  }
}

// Returns the borrow: 1 where a < b.
uint64_t subtract(Wide* a, const Wide& b) {
  uint64_t borrow = 0;
  for (int k = 0; k < 5; ++k) {
    const u128 d = static_cast<u128>(a->w[k]) - b.w[k] - borrow;
    a->w[k] = static_cast<uint64_t>(d);
    borrow = static_cast<uint64_t>(d >> 64) & 1;
  }
  return borrow;
}

}  // namespace

bool Rns::compose(const uint64_t* a, uint64_t* words, size_t rows, const Basis& basis) const {
  // Garner: x = v0 + v1 q0 + v2 q0 q1 + ..
  const size_t l = basis.size();
  std::vector<Wide> radix(l + 1);
  radix[0].w[0] = 1;
  std::vector<uint64_t> inverse(l);
  for (size_t k = 0; k < l; ++k) {
    const Prime& p = primes_[basis[k]];
    add_product(&radix[k + 1], radix[k], p.q);
    uint64_t product = 1;
    for (size_t j = 0; j < k; ++j) product = rns::mul(product, primes_[basis[j]].q % p.q, p);
    inverse[k] = power(product, p.q - 2, p);
  }
  Wide half = radix[l];  // floor(Q / 2)
  for (int k = 0; k < 5; ++k) half.w[k] = (half.w[k] >> 1) | (k < 4 ? half.w[k + 1] << 63 : 0);
  bool fits = true;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < n_; ++i) {
      uint64_t v[4];
      Wide x;
      for (size_t k = 0; k < l; ++k) {
        const Prime& p = primes_[basis[k]];
        uint64_t known = 0;  // what the lower digits give modulo q_k, by Horner
        for (size_t j = k; j-- > 0;)
          known = rns::add(rns::mul(known, primes_[basis[j]].q, p), v[j] % p.q, p.q);
        v[k] = rns::mul(rns::sub(a[(r * l + k) * n_ + i], known, p.q), inverse[k], p);
        add_product(&x, radix[k], v[k]);
      }
      Wide test = half;
      const uint64_t above = -subtract(&test, x);  // all ones where x > Q / 2
      Wide whole;
      for (int k = 0; k < 5; ++k) whole.w[k] = radix[l].w[k] & above;
      subtract(&x, whole);
      const uint64_t sign = -(x.w[1] >> 63);
      fits = fits && x.w[2] == sign && x.w[3] == sign && x.w[4] == sign;
      words[(r * n_ + i) * 2] = x.w[0];
      words[(r * n_ + i) * 2 + 1] = x.w[1];
    }
  }
  return fits;
}

void Rns::to_ring64(const uint64_t* a, uint64_t* out, size_t rows, const Basis& basis) const {
  // a / Q = sum of y_k / q_k mod 1 with y_k = a_k (Q / q_k)^-1 mod q_k; 64 bits of each quotient, and the sum
  // rounds.
  const size_t l = basis.size();
  std::vector<uint64_t> factor(l);
  for (size_t k = 0; k < l; ++k) {
    const Prime& p = primes_[basis[k]];
    uint64_t product = 1;
    for (size_t j = 0; j < l; ++j) {
      if (j != k) product = rns::mul(product, primes_[basis[j]].q % p.q, p);
    }
    factor[k] = power(product, p.q - 2, p);
  }
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < n_; ++i) {
      uint64_t total = 0;
      for (size_t k = 0; k < l; ++k) {
        const Prime& p = primes_[basis[k]];
        const uint64_t y = rns::mul(a[(r * l + k) * n_ + i], factor[k], p);
        total += static_cast<uint64_t>(((static_cast<u128>(y) << 64) + p.q / 2) / p.q);
      }
      out[r * n_ + i] = total;
    }
  }
}

namespace {

// Words of an AES-CTR stream, a piece at a time.
class Words {
 public:
  explicit Words(const uint8_t* key) : key_(key), buffer_(4096), at_(buffer_.size()) {}
  ~Words() { prg::wipe(buffer_.data(), 8 * buffer_.size()); }
  uint64_t next() {
    if (at_ == buffer_.size()) {
      prg::counter_mode(key_, block_, buffer_.data(), buffer_.size());
      block_ += buffer_.size() / 2;
      at_ = 0;
    }
    return buffer_[at_++];
  }

 private:
  const uint8_t* key_;
  uint64_t block_ = 0;
  std::vector<uint64_t> buffer_;
  size_t at_;
};

}  // namespace

void Rns::uniform(const uint8_t* key, uint64_t* out, size_t rows, const Basis& basis) const {
  Words words(key);
  const size_t l = basis.size();
  for (size_t k = 0; k < rows * l; ++k) {
    const uint64_t q = primes_[basis[k % l]].q;
    uint64_t mask = q;
    for (int s = 1; s < 64; s *= 2) mask |= mask >> s;
    for (size_t i = 0; i < n_; ++i) {
      uint64_t w = words.next() & mask;
      while (w >= q) w = words.next() & mask;
      out[k * n_ + i] = w;
    }
  }
}

void Rns::ternary(const uint8_t* key, int64_t* out, size_t rows) const {
  // floor(3 w / 2^64): each value with probability 1/3 within 2^-64.
  Words words(key);
  for (size_t i = 0; i < rows * n_; ++i) {
    out[i] = static_cast<int64_t>((static_cast<u128>(words.next()) * 3) >> 64) - 1;
  }
}

void Rns::binomial(const uint8_t* key, int64_t* out, size_t rows) const {
  // With a and b of 21 bits: bits of a, less bits of b, are the bits of (a, not b) less 21.
  Words words(key);
  constexpr uint64_t kLow = (uint64_t{1} << 21) - 1, kAll = (uint64_t{1} << 42) - 1;
  for (size_t i = 0; i < rows * n_; ++i) {
    uint64_t x = (words.next() ^ (kLow << 21)) & kAll;
    x -= (x >> 1) & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    out[i] = static_cast<int64_t>((x * 0x0101010101010101u) >> 56) - 21;
  }
}

void Rns::wide_uniform(const uint8_t* key, uint64_t* words, size_t rows, int bits) const {
  Words stream(key);
  const u128 mask = (static_cast<u128>(1) << (bits + 1)) - 1;
  for (size_t i = 0; i < rows * n_; ++i) {
    const u128 low = stream.next();
    const u128 x = (((static_cast<u128>(stream.next()) << 64) | low) & mask) - (static_cast<u128>(1) << bits);
    words[2 * i] = static_cast<uint64_t>(x);
    words[2 * i + 1] = static_cast<uint64_t>(x >> 64);
  }
}

// -- key switching --------------------------------------------------------------------------------------

void Rns::decompose(const uint64_t* c, size_t l, uint64_t* digits) const {
  const bool quick = fast();
  const size_t special = primes_.size() - 1;
  parallel_for(l, 1, [&](size_t begin, size_t end) {
    std::vector<uint64_t> coefficients(n_);
    for (size_t j = begin; j < end; ++j) {
      std::copy_n(c + j * n_, n_, coefficients.begin());
      intt(coefficients.data(), n_, primes_[j], quick);
      for (size_t k = 0; k <= l; ++k) {
        uint64_t* to = digits + (j * (l + 1) + k) * n_;
        if (k == j) {
          std::copy_n(c + j * n_, n_, to);
          continue;
        }
        const Prime& p = primes_[k == l ? special : k];
        centre(coefficients.data(), primes_[j].q, to, n_, p);
        rns::ntt(to, n_, p, quick);
      }
    }
  });
}

void Rns::key_product(const uint64_t* digits, size_t l, const uint64_t* key, uint64_t element,
                      uint64_t* out) const {
  const bool quick = fast();
  const size_t all = primes_.size();
  const uint32_t* order = element == 1 ? nullptr : order_of(element);
  parallel_for(l + 1, 1, [&](size_t begin, size_t end) {
    for (size_t k = begin; k < end; ++k) {
      const size_t at = k == l ? all - 1 : k;
      Sum sum;
      sum.x[0] = sum.x[1] = digits + k * n_;
      sum.y[0] = key + at * n_;
      sum.y[1] = key + (all + at) * n_;
      sum.x_step = (l + 1) * n_;
      sum.y_step = 2 * all * n_;
      sum.count = l;
      sum.order = order;
      uint64_t* const to[2] = {out + k * n_, out + (l + 1 + k) * n_};
      rns::multiply_sum(sum, to, n_, primes_[at], quick);
    }
  });
}

void Rns::divide(const uint64_t* a, size_t rows, size_t l, size_t last, uint64_t* out) const {
  const bool quick = fast();
  const Prime& gone = primes_[last];
  parallel_for(rows, 1, [&](size_t begin, size_t end) {
    std::vector<uint64_t> rest(n_), part(n_);
    for (size_t r = begin; r < end; ++r) {
      const uint64_t* from = a + r * (l + 1) * n_;
      std::copy_n(from + l * n_, n_, rest.begin());
      intt(rest.data(), n_, gone, quick);
      for (size_t k = 0; k < l; ++k) {
        const Prime& p = primes_[k];
        centre(rest.data(), gone.q, part.data(), n_, p);
        rns::ntt(part.data(), n_, p, quick);
        const uint64_t inverse = power(gone.q % p.q, p.q - 2, p);
        sub_scale(from + k * n_, part.data(), inverse, out + (r * l + k) * n_, n_, p, quick);
      }
    }
  });
}

void Rns::mod_down(const uint64_t* a, size_t rows, size_t l, uint64_t* out) const {
  divide(a, rows, l, primes_.size() - 1, out);
}

void Rns::rescale(const uint64_t* a, size_t rows, size_t l, uint64_t* out) const {
  divide(a, rows, l - 1, l - 1, out);
}

void Rns::multiply_sum(const uint64_t* x, const uint64_t* y, size_t count, uint64_t* out,
                       const Basis& basis) const {
  const bool quick = fast();
  const size_t l = basis.size();
  // Blocks of a limb, so that two threads share even one limb, and what they add up stays in the cache.
  const size_t block = std::min<size_t>(n_, 2048), blocks = n_ / block;
  parallel_for(l * blocks, 1, [&](size_t begin, size_t end) {
    for (size_t job = begin; job < end; ++job) {
      const size_t k = job / blocks, at = job % blocks * block;
      Sum sum;
      sum.x[0] = x + k * n_ + at;
      sum.x[1] = x + (l + k) * n_ + at;
      sum.y[0] = sum.y[1] = y + k * n_ + at;
      sum.x_step = 2 * l * n_;
      sum.y_step = l * n_;
      sum.count = count;
      sum.order = nullptr;
      uint64_t* const to[2] = {out + k * n_ + at, out + (l + k) * n_ + at};
      rns::multiply_sum(sum, to, block, primes_[basis[k]], quick);
    }
  });
}

}  // namespace privinfer::rns
