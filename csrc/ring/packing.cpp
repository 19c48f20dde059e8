#include "ring/packing.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "threads.h"
#ifdef PRIVINFER_X86
#include <immintrin.h>
#endif

namespace privinfer::ring {
namespace {

// Elements per thread: a multiple of 8, so that every chunk starts on a whole byte whatever the width.
constexpr size_t kChunk = size_t{1} << 18;

template <class Word>
void narrow(const uint64_t* values, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const Word word = static_cast<Word>(values[i]);
    std::memcpy(out + i * sizeof(Word), &word, sizeof(Word));
  }
}

template <class Word>
void widen(const uint8_t* data, size_t count, uint64_t* values) {
  for (size_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, data + i * sizeof(Word), sizeof(Word));
    values[i] = word;
  }
}

void pack_ones(const uint64_t* values, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; i += 8) {
    uint8_t byte = 0;
    const size_t width = std::min<size_t>(8, count - i);
    for (size_t j = 0; j < width; ++j) byte |= static_cast<uint8_t>((values[i + j] & 1) << j);
    out[i / 8] = byte;
  }
}

void unpack_ones(const uint8_t* data, size_t count, uint64_t* values) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const uint64_t byte = data[i / 8];
    for (size_t j = 0; j < 8; ++j) values[i + j] = byte >> j & 1;
  }
  for (; i < count; ++i) values[i] = data[i / 8] >> (i % 8) & 1;
}

#ifdef PRIVINFER_X86
PRIVINFER_TARGET_AVX2 void pack_ones_avx2(const uint64_t* values, size_t count, uint8_t* out) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i + 4));
    const int low = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_slli_epi64(a, 63)));
    const int high = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_slli_epi64(b, 63)));
    out[i / 8] = static_cast<uint8_t>(low | high << 4);
  }
  pack_ones(values + i, count - i, out + i / 8);
}
#endif

// `count` * bits need not be whole bytes; the last byte is filled up with zeros.
void pack_any(const uint64_t* values, size_t count, int bits, uint8_t* out) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;  // bits < 64 here
  uint64_t held = 0;
  int used = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t value = values[i] & mask;
    held |= value << used;
    used += bits;
    if (used >= 64) {
      std::memcpy(out, &held, 8);
      out += 8;
      used -= 64;
      held = used == 0 ? 0 : value >> (bits - used);
    }
  }
  std::memcpy(out, &held, static_cast<size_t>(used + 7) / 8);
}

void unpack_any(const uint8_t* data, size_t count, int bits, uint64_t* values) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  const size_t bytes = (count * static_cast<size_t>(bits) + 7) / 8;
  for (size_t i = 0; i < count; ++i) {
    const size_t bit = i * static_cast<size_t>(bits);
    const size_t at = bit / 8;
    const int shift = static_cast<int>(bit % 8);
    uint64_t word = 0;
    // A value spans at most nine bytes; near the end fewer may be left.
    std::memcpy(&word, data + at, std::min<size_t>(8, bytes - at));
    word >>= shift;
    if (shift + bits > 64) word |= static_cast<uint64_t>(data[at + 8]) << (64 - shift);
    values[i] = word & mask;
  }
}

void pack_chunk(const uint64_t* values, size_t count, int bits, uint8_t* out) {
  switch (bits) {
    case 1:
#ifdef PRIVINFER_X86
      if (current_path() != Path::kPortable) return pack_ones_avx2(values, count, out);
#endif
      return pack_ones(values, count, out);
    case 8:
      return narrow<uint8_t>(values, count, out);
    case 16:
      return narrow<uint16_t>(values, count, out);
    case 32:
      return narrow<uint32_t>(values, count, out);
    case 64:
      std::memcpy(out, values, count * 8);
      return;
    default:
      return pack_any(values, count, bits, out);
  }
}

void unpack_chunk(const uint8_t* data, size_t count, int bits, uint64_t* values) {
  switch (bits) {
    case 1:
      return unpack_ones(data, count, values);
    case 8:
      return widen<uint8_t>(data, count, values);
    case 16:
      return widen<uint16_t>(data, count, values);
    case 32:
      return widen<uint32_t>(data, count, values);
    case 64:
      std::memcpy(values, data, count * 8);
      return;
    default:
      return unpack_any(data, count, bits, values);
  }
}

}  // namespace

void pack_bits(const uint64_t* values, size_t count, int bits, uint8_t* out) {
  const size_t width = static_cast<size_t>(bits);
  parallel_for(count, kChunk, [&](size_t begin, size_t end) {
    pack_chunk(values + begin, end - begin, bits, out + begin / 8 * width);
  });
}

bool unpack_bits(const uint8_t* data, size_t count, int bits, uint64_t* values) {
  const size_t width = static_cast<size_t>(bits);
  parallel_for(count, kChunk, [&](size_t begin, size_t end) {
    unpack_chunk(data + begin / 8 * width, end - begin, bits, values + begin);
  });
  const size_t spare = count * width % 8;
  return spare == 0 || data[count * width / 8] >> spare == 0;
}

}  // namespace privinfer::ring
