#include "fss/dpf.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "prg/aes.h"
#include "prg/lanes.h"
#include "threads.h"

namespace privinfer::fss {
namespace {

using namespace prg;

namespace portable {
#define PRIVINFER_LANES PortableLanes
#define PRIVINFER_TARGET
#include "fss/dpf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace portable

#ifdef PRIVINFER_X86
namespace aesni {
#define PRIVINFER_LANES AesniLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX2
#include "fss/dpf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace aesni

namespace vaes {
#define PRIVINFER_LANES VaesLanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_VAES
#include "fss/dpf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace vaes

namespace avx512 {
#define PRIVINFER_LANES Avx512Lanes
#define PRIVINFER_TARGET PRIVINFER_TARGET_AVX512
#include "fss/dpf.inc"
#undef PRIVINFER_LANES
#undef PRIVINFER_TARGET
}  // namespace avx512
#endif

struct Kernels {
  decltype(&portable::gen) gen;
  decltype(&portable::eval_full) eval_full;
};

Kernels kernels_for(Path path) {
#ifdef PRIVINFER_X86
  if (path == Path::kAvx512) return {avx512::gen, avx512::eval_full};
  if (path == Path::kVaes) return {vaes::gen, vaes::eval_full};
  if (path == Path::kAvx2) return {aesni::gen, aesni::eval_full};
#endif
  (void)path;
  return {portable::gen, portable::eval_full};
}

}  // namespace

DpfScratch::DpfScratch(const DpfShape& shape) : bytes_(16 << std::max(shape.depth(), 4)) {
  data_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t{64}));
}

DpfScratch::~DpfScratch() {
  wipe(data_, bytes_);
  ::operator delete(data_, std::align_val_t{64});
}

size_t dpf_chunk(const DpfShape& shape) {
  const int calls = current_path() == Path::kPortable ? 9 : 15;
  return size_t{16} << std::max(calls - 4 - shape.m, 0);
}

DpfKeys::DpfKeys(const uint8_t* tweak) {
  uint64_t keys[kMaxLeafWords];
  counter_mode(tweak, 0, keys, kMaxLeafWords);
  for (int i = 0; i < kMaxLeafWords / 2; ++i) {
    expand_key(reinterpret_cast<const uint8_t*>(keys + 2 * i), &key[i]);
  }
}

void dpf_gen(const uint64_t* alpha, const uint64_t* payload, size_t count, const DpfShape& shape,
             const uint8_t* roots, const uint8_t* tweak, uint8_t* cw, uint64_t* last) {
  const Path path = current_path();
  const Kernels kernels = kernels_for(path);
  const DpfKeys keys(tweak);
  // Instances worth a thread.
  const size_t chunk = path == Path::kPortable ? 32 : 1024;
  parallel_for(count, chunk, [&](size_t begin, size_t end) {
    kernels.gen(keys, alpha + begin, payload + static_cast<size_t>(shape.w) * begin, end - begin, shape,
                roots + 32 * begin, cw + shape.stride() * begin, last + shape.leaf_words() * begin);
  });
}

void dpf_eval_full(int party, size_t count, const DpfShape& shape, const uint8_t* roots, const uint8_t* cw,
                   const uint64_t* last, const uint8_t* tweak, uint64_t* out) {
  const Path path = current_path();
  const Kernels kernels = kernels_for(path);
  const DpfKeys keys(tweak);
  parallel_for(count, dpf_chunk(shape), [&](size_t begin, size_t end) {
    DpfScratch scratch(shape);
    kernels.eval_full(keys, party, end - begin, shape, roots + 16 * begin, cw + shape.stride() * begin,
                      last + shape.leaf_words() * begin, scratch.data(),
                      out + (static_cast<size_t>(shape.w) << shape.m) * begin);
  });
}

}  // namespace privinfer::fss
