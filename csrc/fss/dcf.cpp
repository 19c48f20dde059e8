#include "fss/dcf.h"

#include <cstring>

#include "prg/aes.h"
#include "prg/lanes.h"
#include "threads.h"

namespace privinfer::fss {
namespace {

using namespace prg;

namespace portable {
#define PRIVINFER_LANES PortableLanes
#define PRIVINFER_TARGET
#include "fss/dcf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace portable

#ifdef PRIVINFER_X86
namespace aesni {
#define PRIVINFER_LANES AesniLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX2
#include "fss/dcf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace aesni

namespace vaes {
#define PRIVINFER_LANES VaesLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_VAES
#include "fss/dcf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace vaes

namespace avx512 {
#define PRIVINFER_LANES Avx512Lanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX512
#include "fss/dcf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace avx512
#endif

struct Kernels {
  decltype(&portable::gen) gen;
  decltype(&portable::eval) eval;
};

Kernels kernels_for(Path path) {
#ifdef PRIVINFER_X86
  if (path == Path::kAvx512) return {avx512::gen, avx512::eval};
  if (path == Path::kVaes) return {vaes::gen, vaes::eval};
  if (path == Path::kAvx2) return {aesni::gen, aesni::eval};
#endif
  (void)path;
  return {portable::gen, portable::eval};
}

// The two keys of the fixed-key PRG. The tweak is public, so nothing here needs wiping.
struct TreeKeys {
  KeySchedule left, right;

  explicit TreeKeys(const uint8_t* tweak) {
    uint64_t keys[4];
    counter_mode(tweak, 0, keys, 4);
    expand_key(reinterpret_cast<const uint8_t*>(keys), &left);
    expand_key(reinterpret_cast<const uint8_t*>(keys + 2), &right);
  }
};

// Instances worth a thread.
size_t chunk_for(Path path) { return path == Path::kPortable ? 32 : 1024; }

}  // namespace

void dcf_gen(const uint64_t* alpha, size_t count, int bits, const uint8_t* roots, const uint8_t* tweak,
             uint8_t* cw, uint64_t* vcw, uint8_t* leaf) {
  const Path path = current_path();
  const Kernels kernels = kernels_for(path);
  const TreeKeys keys(tweak);
  const size_t stride = 16 * static_cast<size_t>(levels(bits));
  parallel_for(count, chunk_for(path), [&](size_t begin, size_t end) {
    kernels.gen(keys.left, keys.right, alpha + begin, end - begin, bits, roots + 32 * begin,
                cw + stride * begin, vcw + begin, leaf + 16 * begin);
  });
}

void dcf_eval(int party, const uint64_t* x, size_t count, int bits, const uint8_t* roots, const uint8_t* cw,
              const uint64_t* vcw, const uint8_t* leaf, const uint8_t* tweak, uint8_t* out) {
  const Path path = current_path();
  const Kernels kernels = kernels_for(path);
  const TreeKeys keys(tweak);
  const size_t stride = 16 * static_cast<size_t>(levels(bits));
  parallel_for(count, chunk_for(path), [&](size_t begin, size_t end) {
    kernels.eval(keys.left, keys.right, party, x + begin, end - begin, bits, roots + 16 * begin,
                 cw + stride * begin, vcw + begin, leaf + 16 * begin, out + begin);
  });
}

}  // namespace privinfer::fss
