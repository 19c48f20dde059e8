#include "ring/conv.h"

#include <algorithm>
#include <cstring>

#include "ring/matmul.h"
#include "threads.h"

namespace privinfer::ring {
namespace {

// A run of outputs in one row of one image; the columns [column, column + length) of a tile.
struct Run {
  size_t image, row, first, length, column;
};

// Smallest i >= 0 with i * stride + offset >= bound.
int64_t first_at_least(int64_t bound, int64_t offset, int64_t stride) {
  return bound <= offset ? 0 : (bound - offset + stride - 1) / stride;
}

// Copies `length` elements of a row of x at positions start, start + stride, ...; 0 outside [0, width).
void copy_row(const uint64_t* row, int64_t width, int64_t start, int64_t stride, size_t length,
              uint64_t* out) {
  const int64_t count = static_cast<int64_t>(length);
  const int64_t begin = std::min(count, first_at_least(0, start, stride));
  const int64_t end = std::clamp(first_at_least(width, start, stride), begin, count);
  for (int64_t i = 0; i < begin; ++i) out[i] = 0;
  if (stride == 1) {
    for (int64_t i = begin; i < end; ++i) out[i] = row[start + i];
  } else {
    for (int64_t i = begin; i < end; ++i) out[i] = row[start + i * stride];
  }
  for (int64_t i = end; i < count; ++i) out[i] = 0;
}

}  // namespace

// One matrix product per group, w [outputs / groups, K] times columns [K, batch * out_height * out_width],
// K = channels / groups * kernel size. Columns are built a cache-sized slice at a time and may span images,
// so that small images fill the tiles too.
void conv2d(const uint64_t* x, const uint64_t* w, uint64_t* y, const ConvShape& s) {
  const size_t plane = s.out_height * s.out_width;
  const size_t columns = s.batch * plane;
  if (columns == 0 || s.outputs == 0) return;
  const size_t group_in = s.channels / s.groups;
  const size_t group_out = s.outputs / s.groups;
  const size_t taps = s.kernel_height * s.kernel_width;
  const size_t k = group_in * taps;
  if (k == 0) {
    std::memset(y, 0, columns * s.outputs * sizeof(uint64_t));
    return;
  }

  const Panel panel = panel_for(current_path());
  const size_t tiles_down = (group_out - 1) / kRows + 1;
  const size_t tiles_across = (columns - 1) / kCols + 1;
  // A column element costs about as much to build as eight multiply-adds.
  const size_t tile_work = (std::min(group_out, kRows) + 8) * std::min(columns, kCols) * k;
  const size_t chunk = kThreadWork / tile_work + 1;

  parallel_for(s.groups * tiles_down * tiles_across, chunk, [&](size_t begin, size_t end) {
    uint64_t* slice = scratch(kDepth * kStride + kRows * kStride);
    uint64_t* result = slice + kDepth * kStride;
    Run runs[kCols];
    for (size_t tile = begin; tile < end; ++tile) {
      const size_t group = tile / (tiles_down * tiles_across);
      const size_t output = tile / tiles_across % tiles_down * kRows;
      const size_t first = tile % tiles_across * kCols;
      const size_t height = std::min(kRows, group_out - output);
      const size_t width = std::min(kCols, columns - first);

      size_t count = 0;
      for (size_t column = 0; column < width;) {
        const size_t at = (first + column) % plane;
        const size_t from = at % s.out_width;
        const size_t length = std::min(s.out_width - from, width - column);
        runs[count++] = {(first + column) / plane, at / s.out_width, from, length, column};
        column += length;
      }

      const uint64_t* weights = w + (group * group_out + output) * k;
      for (size_t at = 0; at < k; at += kDepth) {
        const size_t depth = std::min(kDepth, k - at);
        for (size_t d = 0; d < depth; ++d) {
          const size_t channel = group * group_in + (at + d) / taps;
          const size_t tap = (at + d) % taps;
          const int64_t dy = static_cast<int64_t>(tap / s.kernel_width) * s.dilation_y - s.pad_top;
          const int64_t dx = static_cast<int64_t>(tap % s.kernel_width) * s.dilation_x - s.pad_left;
          uint64_t* out = slice + d * kStride;
          for (size_t r = 0; r < count; ++r) {
            const Run& run = runs[r];
            const int64_t row = static_cast<int64_t>(run.row) * s.stride_y + dy;
            if (row < 0 || row >= static_cast<int64_t>(s.height)) {
              std::fill_n(out + run.column, run.length, uint64_t{0});
              continue;
            }
            const uint64_t* source =
                x + ((run.image * s.channels + channel) * s.height + static_cast<size_t>(row)) * s.width;
            copy_row(source, static_cast<int64_t>(s.width), static_cast<int64_t>(run.first) * s.stride_x + dx,
                     s.stride_x, run.length, out + run.column);
          }
        }
        panel(height, width, depth, weights + at, k, slice, kStride, result, kStride, at > 0);
      }

      // Runs of one image lie side by side in y, so they are copied together.
      for (size_t column = 0; column < width;) {
        const size_t image = (first + column) / plane;
        const size_t at = (first + column) % plane;
        const size_t length = std::min(plane - at, width - column);
        for (size_t i = 0; i < height; ++i) {
          const size_t channel = group * group_out + output + i;
          std::memcpy(y + (image * s.outputs + channel) * plane + at, result + i * kStride + column,
                      length * sizeof(uint64_t));
        }
        column += length;
      }
    }
  });
}

}  // namespace privinfer::ring
