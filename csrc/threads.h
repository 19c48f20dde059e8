// Threads: split a loop over a few short-lived threads.
//
// Threads are started per call and joined before it returns. A persistent pool would save about 20 us a call,
// but it does not survive fork(), and callers fork; kernels ask for threads only where the work is far
// longer.
#pragma once

#include <cstddef>
#include <functional>

namespace privinfer {

constexpr int kMaxThreads = 256;

int get_threads();
// Requires 1 <= count <= kMaxThreads (the binding checks).
void set_threads(int count);

// Calls body(begin, end) on disjoint ranges that cover [0, count), each at most `chunk` long unless one
// thread does everything. Callers choose `chunk` so that it is worth a thread; count <= chunk runs inline.
// The first exception of any range is rethrown here after all threads have ended.
void parallel_for(size_t count, size_t chunk, const std::function<void(size_t, size_t)>& body);

}  // namespace privinfer
