// Ring: dense little-endian bit packing, the wire format of openings narrower than 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace privinfer::ring {

// Bit i of element j becomes bit j * bits + i of the stream; bit b of the stream is bit b % 8 of byte b / 8.
// 1 <= bits <= 64; `out` has exactly ceil(count * bits / 8) bytes. Higher bits of the values are ignored, the
// unused bits of the last byte are zero.
void pack_bits(const uint64_t* values, size_t count, int bits, uint8_t* out);

// The inverse. False if the unused bits of the last byte are not all zero (`values` is then still written).
bool unpack_bits(const uint8_t* data, size_t count, int bits, uint64_t* values);

}  // namespace privinfer::ring
