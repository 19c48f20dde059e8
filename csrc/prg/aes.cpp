#include "prg/aes.h"

#include <cstring>

#include "prg/lanes.h"
#include "threads.h"

namespace privinfer::prg {
namespace {

namespace portable {
#define PRIVINFER_LANES PortableLanes
#define PRIVINFER_TARGET
#include "prg/counter.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace portable

#ifdef PRIVINFER_X86
namespace aesni {
#define PRIVINFER_LANES AesniLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX2
#include "prg/counter.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace aesni

namespace vaes {
#define PRIVINFER_LANES VaesLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_VAES
#include "prg/counter.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace vaes

namespace avx512 {
#define PRIVINFER_LANES Avx512Lanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX512
#include "prg/counter.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace avx512
#endif

// S-box on the four bytes of a word.
uint32_t sub_word(uint32_t word) {
  const uint64_t words[8] = {word};
  Planes planes = slice(words);
  sub_bytes(&planes);
  uint64_t out[8];
  unslice(planes, out);
  return static_cast<uint32_t>(out[0]);
}

#ifdef PRIVINFER_X86
// With four equal columns ShiftRows changes nothing, so the last round is SubBytes alone.
PRIVINFER_TARGET_AVX2 uint32_t sub_word_aesni(uint32_t word) {
  const __m128i columns = _mm_set1_epi32(static_cast<int>(word));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_aesenclast_si128(columns, _mm_setzero_si128())));
}
#endif

using CounterBlocks = void (*)(const KeySchedule&, uint64_t, uint8_t*, size_t);

CounterBlocks counter_blocks_for(Path path) {
#ifdef PRIVINFER_X86
  if (path == Path::kAvx512) return avx512::counter_blocks;
  if (path == Path::kVaes) return vaes::counter_blocks;
  if (path == Path::kAvx2) return aesni::counter_blocks;
#endif
  (void)path;
  return portable::counter_blocks;
}

}  // namespace

// FIPS 197, section 5.2, on little-endian words.
void expand_key(const uint8_t* key, KeySchedule* schedule) {
  auto sub = sub_word;
#ifdef PRIVINFER_X86
  if (current_path() != Path::kPortable) sub = sub_word_aesni;
#endif
  uint32_t w[44];
  std::memcpy(w, key, 16);
  uint32_t rcon = 1;
  for (int i = 4; i < 44; ++i) {
    uint32_t temp = w[i - 1];
    if (i % 4 == 0) {
      temp = sub(temp >> 8 | temp << 24) ^ rcon;
      rcon = rcon << 1 ^ (rcon >> 7) * 0x11B;
    }
    w[i] = w[i - 4] ^ temp;
  }
  std::memcpy(schedule->round, w, sizeof w);
  wipe(w, sizeof w);
}

void counter_mode(const uint8_t* key, uint64_t counter, uint64_t* out, size_t count) {
  if (count == 0) return;
  const Path path = current_path();
  const CounterBlocks blocks = counter_blocks_for(path);
  KeySchedule schedule;
  expand_key(key, &schedule);

  uint8_t* bytes = reinterpret_cast<uint8_t*>(out);
  const size_t chunk = path == Path::kPortable ? size_t{1} << 11 : size_t{1} << 16;
  parallel_for(count / 2, chunk, [&](size_t begin, size_t end) {
    blocks(schedule, counter + begin, bytes + 16 * begin, end - begin);
  });
  if (count % 2 != 0) {
    uint64_t last[2];
    blocks(schedule, counter + count / 2, reinterpret_cast<uint8_t*>(last), 1);
    out[count - 1] = last[0];
    wipe(last, sizeof last);
  }
  wipe(&schedule, sizeof schedule);
}

}  // namespace privinfer::prg
