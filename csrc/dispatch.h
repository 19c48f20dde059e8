// Dispatch: which of the compiled code paths this CPU can run, and which one is in use.
#pragma once

#include <string>
#include <utility>
#include <vector>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "privinfer kernels assume a little-endian machine"
#endif

#if defined(__x86_64__)
#define PRIVINFER_X86 1
// One name per path, so that a kernel and the helpers inlined into it always agree.
#define PRIVINFER_TARGET_AVX2 __attribute__((target("avx2,aes")))
#define PRIVINFER_TARGET_VAES __attribute__((target("avx2,aes,vaes")))
#define PRIVINFER_TARGET_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,aes,vaes")))
#endif

namespace privinfer {

// Slowest first. kVaes differs from kAvx2 in the AES kernels only.
enum class Path : int { kPortable = 0, kAvx2 = 1, kVaes = 2, kAvx512 = 3 };

Path current_path();
const char* path_name(Path path);
std::vector<Path> available_paths();
// Throws std::invalid_argument if the name is unknown or this CPU lacks the instructions.
void use_path(const std::string& name);
std::vector<std::pair<std::string, bool>> cpu_features();

}  // namespace privinfer
