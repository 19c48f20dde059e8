#include "blind/blind.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "prg/aes.h"
#include "prg/lanes.h"
#include "threads.h"

namespace privinfer::blind {
namespace {

using namespace prg;

constexpr size_t kMaxResidues = kBlock * static_cast<size_t>(max_bits(kLargePrime) + 1);
constexpr size_t kMaxBytes = static_cast<size_t>(max_bits(kLargePrime) + 7) / 8;

// Counters: purpose in the top two bits, 2^28 AES blocks for each block of values.
constexpr int kSpan = 28;
constexpr uint64_t kBeta = 0, kShift = uint64_t{1} << 62, kScale = uint64_t{2} << 62,
                   kAdd = uint64_t{3} << 62;

// Residues packed together, and how many such groups `total` residues make.
template <int P>
constexpr size_t kGroup = P == kSmallPrime ? 3 : 4;

template <int P>
constexpr size_t groups(size_t total) {
  return (total + kGroup<P> - 1) / kGroup<P>;
}

template <int P>
constexpr size_t packed_bytes(size_t total) {
  return groups<P>(total) * (kGroup<P> - 1);
}

// value mod P for value < 2 P.
template <int P>
inline uint8_t reduce(uint8_t value) {
  static_assert(P < 64);
  const uint8_t less = static_cast<uint8_t>(value - P);
  return static_cast<uint8_t>(less + (P & (0 - (less >> 7))));
}

// a where the mask is all ones, b where it is zero.
inline uint8_t choose(uint8_t mask, uint8_t a, uint8_t b) {
  return static_cast<uint8_t>(b ^ (mask & (a ^ b)));
}

namespace portable {
#define PRIVINFER_LANES PortableLanes
#define PRIVINFER_TARGET
#include "blind/blind.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace portable

#ifdef PRIVINFER_X86
namespace aesni {
#define PRIVINFER_LANES AesniLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX2
#include "blind/blind.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace aesni

namespace vaes {
#define PRIVINFER_LANES VaesLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_VAES
#include "blind/blind.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace vaes

namespace avx512 {
#define PRIVINFER_LANES Avx512Lanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX512
#include "blind/blind.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace avx512
#endif

template <int P>
struct Kernels {
  decltype(&portable::share_block<P>) share;
  decltype(&portable::mask_block<P>) mask;
  decltype(&portable::zero_block<P>) zero;
  decltype(&portable::valid_block<P>) valid;
};

template <int P>
Kernels<P> kernels() {
#ifdef PRIVINFER_X86
  const Path path = current_path();
  if (path == Path::kAvx512) {
    return {avx512::share_block<P>, avx512::mask_block<P>, avx512::zero_block<P>, avx512::valid_block<P>};
  }
  if (path == Path::kVaes) {
    return {vaes::share_block<P>, vaes::mask_block<P>, vaes::zero_block<P>, vaes::valid_block<P>};
  }
  if (path == Path::kAvx2) {
    return {aesni::share_block<P>, aesni::mask_block<P>, aesni::zero_block<P>, aesni::valid_block<P>};
  }
#endif
  return {portable::share_block<P>, portable::mask_block<P>, portable::zero_block<P>,
          portable::valid_block<P>};
}

decltype(&portable::beta_block) beta_kernel() {
#ifdef PRIVINFER_X86
  const Path path = current_path();
  if (path == Path::kAvx512) return avx512::beta_block;
  if (path == Path::kVaes) return vaes::beta_block;
  if (path == Path::kAvx2) return aesni::beta_block;
#endif
  return portable::beta_block;
}

// Blocks of values worth a thread.
size_t chunk() { return current_path() == Path::kPortable ? 2 : 32; }

// Calls body(block, first value, width) for every block of values.
template <class Body>
void for_blocks(size_t count, const Body& body) {
  parallel_for((count + kBlock - 1) / kBlock, chunk(), [&](size_t begin, size_t end) {
    for (size_t b = begin; b < end; ++b) body(b, b * kBlock, std::min(kBlock, count - b * kBlock));
  });
}

template <int P>
void share_bits_of(const uint64_t* r, size_t count, int bits, const KeySchedule& key, uint8_t* out) {
  const auto share = kernels<P>().share;
  const size_t stride = packed_bytes<P>(kBlock * static_cast<size_t>(bits));
  for_blocks(count, [&](size_t block, size_t at, size_t width) {
    share(key, block, r + at, width, bits, out + block * stride);
  });
}

template <int P>
bool mask_of(const KeySchedule* key, const KeySchedule& pair, const uint64_t* x, size_t count, int bits,
             const uint8_t* packed, uint8_t* out) {
  const auto mask = kernels<P>().mask;
  const size_t in_stride = packed_bytes<P>(kBlock * static_cast<size_t>(bits));
  const size_t out_stride = packed_bytes<P>(kBlock * static_cast<size_t>(bits + 1));
  std::atomic<bool> good{true};
  for_blocks(count, [&](size_t block, size_t at, size_t width) {
    const uint8_t* in = packed == nullptr ? nullptr : packed + block * in_stride;
    if (!mask(key, pair, block, x + at, width, bits, in, out + block * out_stride)) good = false;
  });
  return good;
}

template <int P>
bool zero_of(const uint8_t* first, const uint8_t* second, size_t count, int bits, uint8_t* out) {
  const auto zero = kernels<P>().zero;
  const size_t stride = packed_bytes<P>(kBlock * static_cast<size_t>(bits + 1));
  std::atomic<bool> good{true};
  for_blocks(count, [&](size_t block, size_t at, size_t width) {
    if (!zero(first + block * stride, second + block * stride, width, bits, out + at)) good = false;
  });
  return good;
}

template <int P>
bool valid_of(const uint8_t* data, size_t count, size_t positions) {
  const auto valid = kernels<P>().valid;
  const size_t stride = packed_bytes<P>(kBlock * positions);
  std::atomic<bool> good{true};
  for_blocks(count, [&](size_t block, size_t, size_t width) {
    if (!valid(data + block * stride, width * positions)) good = false;
  });
  return good;
}

}  // namespace

size_t packed_size(size_t count, size_t positions, int p) {
  const auto bytes = p == kSmallPrime ? packed_bytes<kSmallPrime> : packed_bytes<kLargePrime>;
  return count / kBlock * bytes(kBlock * positions) + bytes(count % kBlock * positions);
}

void share_bits(const uint64_t* r, size_t count, int bits, int p, const uint8_t* key, uint8_t* out) {
  KeySchedule schedule;
  expand_key(key, &schedule);
  const auto kernel = p == kSmallPrime ? share_bits_of<kSmallPrime> : share_bits_of<kLargePrime>;
  kernel(r, count, bits, schedule, out);
  wipe(&schedule, sizeof schedule);
}

bool mask(int party, const uint64_t* x, size_t count, int bits, int p, const uint8_t* key,
          const uint8_t* packed, const uint8_t* key_pair, uint8_t* out) {
  KeySchedule own, pair;
  expand_key(key_pair, &pair);
  if (party == 0) expand_key(key, &own);
  const auto kernel = p == kSmallPrime ? mask_of<kSmallPrime> : mask_of<kLargePrime>;
  const bool good = kernel(party == 0 ? &own : nullptr, pair, x, count, bits, packed, out);
  wipe(&own, sizeof own);
  wipe(&pair, sizeof pair);
  return good;
}

bool zero(const uint8_t* first, const uint8_t* second, size_t count, int bits, int p, uint8_t* out) {
  const auto kernel = p == kSmallPrime ? zero_of<kSmallPrime> : zero_of<kLargePrime>;
  return kernel(first, second, count, bits, out);
}

void beta(const uint8_t* key_pair, size_t count, uint8_t* out) {
  KeySchedule pair;
  expand_key(key_pair, &pair);
  const auto kernel = beta_kernel();
  for_blocks(count, [&](size_t block, size_t at, size_t width) { kernel(pair, block, width, out + at); });
  wipe(&pair, sizeof pair);
}

bool valid(const uint8_t* data, size_t count, size_t positions, int p) {
  return (p == kSmallPrime ? valid_of<kSmallPrime> : valid_of<kLargePrime>)(data, count, positions);
}

}  // namespace privinfer::blind
