// Bindings: NumPy arrays in and out. Everything is checked here, so that the kernels can trust their
// arguments; the work itself runs without the GIL. Messages name shapes and bounds, never values: arguments
// may be secret.
#include "rns/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "approx/table.h"
#include "arguments.h"
#include "blind/blind.h"
#include "dispatch.h"
#include "fss/dcf.h"
#include "fss/dpf.h"
#include "prg/aes.h"
#include "ring/conv.h"
#include "ring/matmul.h"
#include "ring/packing.h"
#include "threads.h"

namespace py = pybind11;
using namespace privinfer;

namespace {

py::array matmul(py::object a, py::object b) {
  const U64 left(a, "a", {kAny, kAny});
  const U64 right(b, "b", {left.dim(1), kAny});
  auto out = output<uint64_t>({left.size(0), right.size(1)});
  uint64_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    ring::matmul(left.data(), right.data(), data, left.size(0), left.size(1), right.size(1));
  }
  return out;
}

// Output size along one axis, as in torch.
size_t conv_size(const char* axis, size_t input, size_t kernel, int64_t stride, int64_t before, int64_t after,
                 int64_t dilation) {
  const int64_t span =
      static_cast<int64_t>(input) + before + after - dilation * (static_cast<int64_t>(kernel) - 1);
  if (span < 1) throw py::value_error(std::string("w is larger than the padded x along ") + axis);
  return static_cast<size_t>((span - 1) / stride + 1);
}

py::array conv2d(py::object x, py::object w, py::object stride, py::object padding, py::object dilation,
                 py::object groups) {
  const U64 input(x, "x", {kAny, kAny, kAny, kAny});
  const U64 weights(w, "w", {kAny, kAny, kAny, kAny});
  const auto strides = integers(stride, "stride", 2, 1);
  const auto pads = integers(padding, "padding", 4, 0);
  const auto dilations = integers(dilation, "dilation", 2, 1);
  constexpr size_t kLimit = (size_t{1} << 31) - 1;
  for (int axis = 0; axis < 4; ++axis) {
    if (input.size(axis) > kLimit || weights.size(axis) > kLimit)
      throw py::value_error("axes must be below 2^31");
  }

  ring::ConvShape s;
  s.groups = integer(groups, "groups", 1, kLimit);
  s.batch = input.size(0);
  s.channels = input.size(1);
  s.height = input.size(2);
  s.width = input.size(3);
  s.outputs = weights.size(0);
  s.kernel_height = weights.size(2);
  s.kernel_width = weights.size(3);
  if (s.channels % s.groups != 0 || s.outputs % s.groups != 0) {
    throw py::value_error("groups must divide the channels of x and of w");
  }
  if (weights.size(1) != s.channels / s.groups) {
    throw py::value_error("w must have shape (*, " + std::to_string(s.channels / s.groups) +
                          ", *, *): channels of x over groups");
  }
  if (s.kernel_height == 0 || s.kernel_width == 0) throw py::value_error("w must not have an empty kernel");
  s.stride_y = strides[0];
  s.stride_x = strides[1];
  s.pad_top = pads[0];
  s.pad_left = pads[1];
  s.dilation_y = dilations[0];
  s.dilation_x = dilations[1];
  s.out_height = conv_size("height", s.height, s.kernel_height, s.stride_y, pads[0], pads[2], s.dilation_y);
  s.out_width = conv_size("width", s.width, s.kernel_width, s.stride_x, pads[1], pads[3], s.dilation_x);

  auto out = output<uint64_t>({s.batch, s.outputs, s.out_height, s.out_width});
  uint64_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    ring::conv2d(input.data(), weights.data(), data, s);
  }
  return out;
}

// ceil(count * bits / 8), without overflow.
size_t packed_size(size_t count, int bits) {
  const size_t width = static_cast<size_t>(bits);
  return count / 8 * width + (count % 8 * width + 7) / 8;
}

py::array pack_bits(py::object values, py::object bits) {
  const U64 input(values, "values", {kAny});
  const int width = static_cast<int>(integer(bits, "bits", 1, 64));
  auto out = output<uint8_t>({packed_size(input.size(0), width)});
  uint8_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    ring::pack_bits(input.data(), input.size(0), width, data);
  }
  return out;
}

py::array unpack_bits(py::object data, py::object bits, py::object count) {
  const U8 input(data, "data", {kAny});
  const int width = static_cast<int>(integer(bits, "bits", 1, 64));
  const size_t length = integer(count, "count", 0, uint64_t{1} << 56);
  if (input.size(0) != packed_size(length, width)) {
    throw py::value_error("data must have " + std::to_string(packed_size(length, width)) + " bytes, got " +
                          std::to_string(input.size(0)));
  }
  auto out = output<uint64_t>({length});
  uint64_t* values = out.mutable_data();
  bool clean;
  {
    py::gil_scoped_release release;
    clean = ring::unpack_bits(input.data(), length, width, values);
  }
  if (!clean) throw py::value_error("data has non-zero bits after the last value");
  return out;
}

py::array prg_u64(py::object key, py::object counter, py::object count) {
  const uint8_t* secret = bytes16(key, "key");
  const uint64_t first = integer(counter, "counter", 0, ~uint64_t{0});
  const size_t length = integer(count, "count", 0, uint64_t{1} << 59);
  const uint64_t blocks = (length + 1) / 2;
  if (blocks > 0 && blocks - 1 > ~uint64_t{0} - first) throw py::value_error("counter runs past 2^64 blocks");
  auto out = output<uint64_t>({length});
  uint64_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    prg::counter_mode(secret, first, data, length);
  }
  return out;
}

// Looks at every value before it answers, so that the time tells nothing about the values.
void below_power(const U64& values, const char* name, int bits) {
  uint64_t seen = 0;
  for (size_t i = 0; i < values.total(); ++i) seen |= values.data()[i];
  if (seen >> bits != 0)
    throw py::value_error(std::string(name) + " must be below 2^" + std::to_string(bits));
}

py::tuple dcf_gen(py::object alpha, py::object bits, py::object roots, py::object tweak) {
  const U64 points(alpha, "alpha", {kAny});
  const int width = static_cast<int>(integer(bits, "bits", 0, fss::kMaxBits));
  const U8 seeds(roots, "roots", {points.dim(0), 2, 16});
  const uint8_t* key = bytes16(tweak, "tweak");
  below_power(points, "alpha", width);
  const size_t count = points.size(0);
  auto cw = output<uint8_t>({count, static_cast<size_t>(fss::levels(width)), 16});
  auto vcw = output<uint64_t>({count});
  auto leaf = output<uint8_t>({count, 16});
  uint8_t* cw_data = cw.mutable_data();
  uint64_t* vcw_data = vcw.mutable_data();
  uint8_t* leaf_data = leaf.mutable_data();
  {
    py::gil_scoped_release release;
    fss::dcf_gen(points.data(), count, width, seeds.data(), key, cw_data, vcw_data, leaf_data);
  }
  return py::make_tuple(cw, vcw, leaf);
}

py::array dcf_eval(py::object party, py::object x, py::object bits, py::object roots, py::object cw,
                   py::object vcw, py::object leaf, py::object tweak) {
  const int who = static_cast<int>(integer(party, "party", 0, 1));
  const U64 points(x, "x", {kAny});
  const int width = static_cast<int>(integer(bits, "bits", 0, fss::kMaxBits));
  const py::ssize_t n = points.dim(0);
  const U8 seeds(roots, "roots", {n, 16});
  const U8 words(cw, "cw", {n, fss::levels(width), 16});
  const U64 value_words(vcw, "vcw", {n});
  const U8 leaves(leaf, "leaf", {n, 16});
  const uint8_t* key = bytes16(tweak, "tweak");
  below_power(points, "x", width);
  auto out = output<uint8_t>({points.size(0)});
  uint8_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    fss::dcf_eval(who, points.data(), points.size(0), width, seeds.data(), words.data(), value_words.data(),
                  leaves.data(), key, data);
  }
  return out;
}

// Keys of the distributed point function: what the parties need of them and in which shapes.
struct DpfInput {
  fss::DpfShape shape;
  U8 roots, cw;
  U64 last;
  const uint8_t* tweak;
};

void check_cut(const fss::DpfShape& shape) {
  if (shape.leaf_words() > fss::kMaxLeafWords) {
    throw py::value_error("a leaf must have at most " + std::to_string(fss::kMaxLeafWords) +
                          " words: w 2^cut");
  }
}

// `count` instances, or as many as there are roots if kAny. How early the tree is cut shows in cw.
DpfInput dpf_input(py::ssize_t count, int m, int w, py::handle roots, py::handle cw, py::handle last,
                   py::handle tweak) {
  const U8 seeds(roots, "roots", {count, 16});
  const U8 words(cw, "cw", {seeds.dim(0), kAny, 16});
  if (words.size(1) > static_cast<size_t>(m)) {
    throw py::value_error("cw must have at most m = " + std::to_string(m) + " levels, got " +
                          std::to_string(words.size(1)));
  }
  const fss::DpfShape shape{m, w, m - static_cast<int>(words.size(1))};
  check_cut(shape);
  const U64 leaf(last, "final", {seeds.dim(0), static_cast<py::ssize_t>(shape.leaf_words())});
  return {shape, seeds, words, leaf, bytes16(tweak, "tweak")};
}

py::tuple dpf_gen(py::object alpha, py::object payload, py::object m, py::object roots, py::object tweak,
                  py::object cut) {
  const U64 points(alpha, "alpha", {kAny});
  const U64 values(payload, "payload", {points.dim(0), kAny});
  if (values.size(1) < 1 || values.size(1) > fss::kMaxWords) {
    throw py::value_error("payload must have 1.." + std::to_string(fss::kMaxWords) + " words, got " +
                          std::to_string(values.size(1)));
  }
  const int bits = static_cast<int>(integer(m, "m", 0, fss::kMaxDomainBits));
  const int levels = static_cast<int>(integer(cut, "cut", 0, static_cast<uint64_t>(bits)));
  const fss::DpfShape shape{bits, static_cast<int>(values.size(1)), levels};
  check_cut(shape);
  const U8 seeds(roots, "roots", {points.dim(0), 2, 16});
  const uint8_t* key = bytes16(tweak, "tweak");
  below_power(points, "alpha", bits);
  const size_t count = points.size(0);
  auto cw = output<uint8_t>({count, static_cast<size_t>(shape.depth()), 16});
  auto last = output<uint64_t>({count, shape.leaf_words()});
  uint8_t* cw_data = cw.mutable_data();
  uint64_t* last_data = last.mutable_data();
  {
    py::gil_scoped_release release;
    fss::dpf_gen(points.data(), values.data(), count, shape, seeds.data(), key, cw_data, last_data);
  }
  return py::make_tuple(cw, last);
}

py::array dpf_eval_full(py::object party, py::object m, py::object w, py::object roots, py::object cw,
                        py::object final, py::object tweak) {
  const int who = static_cast<int>(integer(party, "party", 0, 1));
  const int bits = static_cast<int>(integer(m, "m", 0, fss::kMaxDomainBits));
  const int width = static_cast<int>(integer(w, "w", 1, fss::kMaxWords));
  const DpfInput keys = dpf_input(kAny, bits, width, roots, cw, final, tweak);
  const size_t count = keys.roots.size(0);
  auto out = output<uint64_t>({count, size_t{1} << bits, static_cast<size_t>(width)});
  uint64_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    fss::dpf_eval_full(who, count, keys.shape, keys.roots.data(), keys.cw.data(), keys.last.data(),
                       keys.tweak, data);
  }
  return out;
}

py::array table_eval(py::object party, py::object xhat, py::object m, py::object s, py::object degree,
                     py::object coefficients, py::object roots, py::object cw, py::object final,
                     py::object tweak) {
  const int who = static_cast<int>(integer(party, "party", 0, 1));
  const U64 points(xhat, "xhat", {kAny});
  const int bits = static_cast<int>(integer(m, "m", 1, approx::kMaxTableBits));
  const int low = static_cast<int>(integer(s, "s", 0, approx::kMaxLowBits));
  const int width = static_cast<int>(integer(degree, "degree", 0, approx::kMaxDegree)) + 1;
  const U64 table(coefficients, "coefficients", {width, py::ssize_t{1} << bits});
  const DpfInput keys = dpf_input(points.dim(0), bits, width, roots, cw, final, tweak);
  auto out = output<uint64_t>({points.size(0)});
  uint64_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    approx::table_eval(who, points.data(), points.size(0), keys.shape, low, table.data(), keys.roots.data(),
                       keys.cw.data(), keys.last.data(), keys.tweak, data);
  }
  return out;
}

int prime(py::handle object) {
  const uint64_t p = integer(object, "p", 2, 255);
  if (p != blind::kSmallPrime && p != blind::kLargePrime) throw py::value_error("p must be 37 or 53");
  return static_cast<int>(p);
}

int blind_width(py::handle object, int p) {
  return static_cast<int>(integer(object, "bits", 1, static_cast<uint64_t>(blind::max_bits(p))));
}

// Packed residues; one dimension of the only right length.
U8 packed_residues(py::handle object, const char* name, size_t count, size_t positions, int p) {
  return U8(object, name, {static_cast<py::ssize_t>(blind::packed_size(count, positions, p))});
}

[[noreturn]] void malformed(const char* name) {
  throw py::value_error(std::string(name) + " must hold packed residues below p");
}

py::array blind_share_bits(py::object r, py::object bits, py::object p, py::object key) {
  const U64 values(r, "r", {kAny});
  const int modulus = prime(p);
  const int width = blind_width(bits, modulus);
  const uint8_t* secret = bytes16(key, "key");
  below_power(values, "r", width);
  auto out = output<uint8_t>({blind::packed_size(values.size(0), static_cast<size_t>(width), modulus)});
  uint8_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    blind::share_bits(values.data(), values.size(0), width, modulus, secret, data);
  }
  return out;
}

py::array blind_mask(py::object party, py::object x, py::object bits, py::object p, py::object shares,
                     py::object key_pair) {
  const int who = static_cast<int>(integer(party, "party", 0, 1));
  const U64 points(x, "x", {kAny});
  const int modulus = prime(p);
  const int width = blind_width(bits, modulus);
  const size_t count = points.size(0), positions = static_cast<size_t>(width);
  const uint8_t* key = who == 0 ? bytes16(shares, "shares") : nullptr;
  const uint8_t* packed =
      who == 0 ? nullptr : packed_residues(shares, "shares", count, positions, modulus).data();
  const uint8_t* pair = bytes16(key_pair, "key_pair");
  below_power(points, "x", width);
  auto out = output<uint8_t>({blind::packed_size(count, positions + 1, modulus)});
  uint8_t* data = out.mutable_data();
  bool good;
  {
    py::gil_scoped_release release;
    good = blind::mask(who, points.data(), count, width, modulus, key, packed, pair, data);
  }
  if (!good) malformed("shares");
  return out;
}

py::array blind_zero(py::object first, py::object second, py::object count, py::object bits, py::object p) {
  const size_t length = integer(count, "count", 0, blind::kMaxCount);
  const int modulus = prime(p);
  const int width = blind_width(bits, modulus);
  const size_t positions = static_cast<size_t>(width) + 1;
  const U8 left = packed_residues(first, "first", length, positions, modulus);
  const U8 right = packed_residues(second, "second", length, positions, modulus);
  auto out = output<uint8_t>({length});
  uint8_t* data = out.mutable_data();
  bool good;
  {
    py::gil_scoped_release release;
    good = blind::zero(left.data(), right.data(), length, width, modulus, data);
  }
  if (!good) malformed("first and second");
  return out;
}

py::array blind_beta(py::object key_pair, py::object count) {
  const uint8_t* pair = bytes16(key_pair, "key_pair");
  const size_t length = integer(count, "count", 0, blind::kMaxCount);
  auto out = output<uint8_t>({length});
  uint8_t* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    blind::beta(pair, length, data);
  }
  return out;
}

bool blind_valid(py::object data, py::object count, py::object positions, py::object p) {
  const size_t length = integer(count, "count", 0, blind::kMaxCount);
  const int modulus = prime(p);
  const size_t rows = integer(positions, "positions", 1, static_cast<uint64_t>(blind::max_bits(modulus)) + 1);
  const U8 input = packed_residues(data, "data", length, rows, modulus);
  py::gil_scoped_release release;
  return blind::valid(input.data(), length, rows, modulus);
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of privinfer; see _kernels.pyi for shapes, bounds and sources.";
  using py::arg;

  m.def("matmul", &matmul, arg("a"), arg("b"));
  m.def("conv2d", &conv2d, arg("x"), arg("w"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"));
  m.def("pack_bits", &pack_bits, arg("values"), arg("bits"));
  m.def("unpack_bits", &unpack_bits, arg("data"), arg("bits"), arg("count"));
  m.def("prg_u64", &prg_u64, arg("key"), arg("counter"), arg("count"));
  m.def("dcf_gen", &dcf_gen, arg("alpha"), arg("bits"), arg("roots"), arg("tweak"));
  m.def("dcf_eval", &dcf_eval, arg("party"), arg("x"), arg("bits"), arg("roots"), arg("cw"), arg("vcw"),
        arg("leaf"), arg("tweak"));
  m.def("dpf_gen", &dpf_gen, arg("alpha"), arg("payload"), arg("m"), arg("roots"), arg("tweak"),
        arg("cut") = 0);
  m.def("dpf_eval_full", &dpf_eval_full, arg("party"), arg("m"), arg("w"), arg("roots"), arg("cw"),
        arg("final"), arg("tweak"));
  m.def("table_eval", &table_eval, arg("party"), arg("xhat"), arg("m"), arg("s"), arg("degree"),
        arg("coefficients"), arg("roots"), arg("cw"), arg("final"), arg("tweak"));
  m.def("blind_share_bits", &blind_share_bits, arg("r"), arg("bits"), arg("p"), arg("key"));
  m.def("blind_mask", &blind_mask, arg("party"), arg("x"), arg("bits"), arg("p"), arg("shares"),
        arg("key_pair"));
  m.def("blind_zero", &blind_zero, arg("first"), arg("second"), arg("count"), arg("bits"), arg("p"));
  m.def("blind_beta", &blind_beta, arg("key_pair"), arg("count"));
  m.def("blind_valid", &blind_valid, arg("data"), arg("count"), arg("positions"), arg("p"));

  rns::bind(m);

  m.def("get_threads", &get_threads);
  m.def(
      "set_threads",
      [](py::object count) { set_threads(static_cast<int>(integer(count, "count", 1, kMaxThreads))); },
      arg("count"));
  m.def("current_path", [] { return std::string(path_name(current_path())); });
  m.def("use_path", [](const std::string& name) { use_path(name); }, arg("name"));
  m.def("paths", [] {
    py::list out;
    for (Path path : available_paths()) out.append(path_name(path));
    return out;
  });
  m.def("cpu_features", [] {
    py::dict out;
    for (const auto& feature : cpu_features()) out[feature.first.c_str()] = feature.second;
    return out;
  });
}
