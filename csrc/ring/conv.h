// Ring: two-dimensional convolution (cross-correlation, as in torch) over Z_2^64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace privinfer::ring {

// All sizes and offsets are below 2^31 and products of the sizes of one array fit in size_t (the binding
// checks).
struct ConvShape {
  size_t batch, channels, height, width;  // x
  size_t outputs, kernel_height,
      kernel_width;                // w: [outputs, channels / groups, kernel_height, kernel_width]
  size_t groups;                   // divides channels and outputs
  int64_t stride_y, stride_x;      // >= 1
  int64_t pad_top, pad_left;       // >= 0; bottom and right follow from the output size
  int64_t dilation_y, dilation_x;  // >= 1
  size_t out_height, out_width;
};

// y[batch, outputs, out_height, out_width] = x * w mod 2^64; x is taken as 0 outside its bounds.
void conv2d(const uint64_t* x, const uint64_t* w, uint64_t* y, const ConvShape& shape);

}  // namespace privinfer::ring
