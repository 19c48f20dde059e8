#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace privinfer {
namespace {

std::atomic<int>& setting() {
  static std::atomic<int> count{std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 8)};
  return count;
}

}  // namespace

int get_threads() { return setting().load(std::memory_order_relaxed); }

void set_threads(int count) { setting().store(count, std::memory_order_relaxed); }

void parallel_for(size_t count, size_t chunk, const std::function<void(size_t, size_t)>& body) {
  if (count == 0) return;
  chunk = std::max<size_t>(chunk, 1);
  const size_t chunks = (count - 1) / chunk + 1;
  const size_t workers = std::min<size_t>(chunks, static_cast<size_t>(get_threads()));
  if (workers <= 1) {
    body(0, count);
    return;
  }

  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_lock;
  auto work = [&] {
    try {
      for (size_t i = next.fetch_add(1); i < chunks; i = next.fetch_add(1)) {
        body(i * chunk, std::min(count, (i + 1) * chunk));
      }
    } catch (...) {
      next.store(chunks);
      const std::lock_guard<std::mutex> guard(failure_lock);
      if (!failure) failure = std::current_exception();
    }
  };

  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  try {
    for (size_t i = 1; i < workers; ++i) pool.emplace_back(work);
  } catch (const std::system_error&) {
    // The system refuses more threads: those that started and this one share the work.
  }
  work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace privinfer
