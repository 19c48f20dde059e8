// PRG: AES-128 key schedule and counter mode. Constant time on every path: no branch and no address depends
// on keys or data.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"

namespace privinfer::prg {

// FIPS 197 round keys, in the byte order of the standard.
struct KeySchedule {
  alignas(16) uint8_t round[11][16];
};

// key: 16 bytes.
void expand_key(const uint8_t* key, KeySchedule* schedule);

// out[count]: blocks AES_key(counter), AES_key(counter + 1), ..., a block being two little-endian words and
// the counter a 128-bit little-endian number. Requires counter + ceil(count / 2) <= 2^64, so that it never
// wraps.
void counter_mode(const uint8_t* key, uint64_t counter, uint64_t* out, size_t count);

// Overwrites memory in a way the compiler may not remove.
inline void wipe(void* memory, size_t bytes) {
  unsigned char* at = static_cast<unsigned char*>(memory);
  for (size_t i = 0; i < bytes; ++i) at[i] = 0;
  __asm__ __volatile__("" : : "r"(memory) : "memory");
}

}  // namespace privinfer::prg
