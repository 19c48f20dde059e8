#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace privinfer {
namespace {

constexpr Path kAll[] = {Path::kPortable, Path::kAvx2, Path::kVaes, Path::kAvx512};

bool supported(Path path) {
#ifdef PRIVINFER_X86
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("aes");
  const bool vaes = avx2 && __builtin_cpu_supports("vaes");
  const bool avx512 = vaes && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  switch (path) {
    case Path::kPortable:
      return true;
    case Path::kAvx2:
      return avx2;
    case Path::kVaes:
      return vaes;
    case Path::kAvx512:
      return avx512;
  }
  return false;
#else
  return path == Path::kPortable;
#endif
}

Path best() {
  Path found = Path::kPortable;
  for (Path path : kAll) {
    if (supported(path)) found = path;
  }
  return found;
}

std::atomic<Path>& chosen() {
  static std::atomic<Path> path{best()};
  return path;
}

}  // namespace

Path current_path() { return chosen().load(std::memory_order_relaxed); }

const char* path_name(Path path) {
  switch (path) {
    case Path::kPortable:
      return "portable";
    case Path::kAvx2:
      return "avx2";
    case Path::kVaes:
      return "vaes";
    case Path::kAvx512:
      return "avx512";
  }
  return "?";
}

std::vector<Path> available_paths() {
  std::vector<Path> out;
  for (Path path : kAll) {
    if (supported(path)) out.push_back(path);
  }
  return out;
}

void use_path(const std::string& name) {
  for (Path path : kAll) {
    if (name != path_name(path)) continue;
    if (!supported(path))
      throw std::invalid_argument("path '" + name + "' needs instructions this CPU lacks");
    chosen().store(path, std::memory_order_relaxed);
    return;
  }
  throw std::invalid_argument("unknown path '" + name + "'");
}

std::vector<std::pair<std::string, bool>> cpu_features() {
#ifdef PRIVINFER_X86
  __builtin_cpu_init();
  return {{"aes", __builtin_cpu_supports("aes") != 0},
          {"avx2", __builtin_cpu_supports("avx2") != 0},
          {"vaes", __builtin_cpu_supports("vaes") != 0},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512vl", __builtin_cpu_supports("avx512vl") != 0}};
#else
  return {{"aes", false},      {"avx2", false},     {"vaes", false},    {"avx512f", false},
          {"avx512dq", false}, {"avx512bw", false}, {"avx512vl", false}};
#endif
}

}  // namespace privinfer
