// Bindings of Rns: shapes, bases and numbers are checked here; the work runs without the GIL.
#include "rns/bindings.h"

#include <complex>
#include <functional>

#include "arguments.h"
#include "rns/rns.h"

namespace privinfer::rns {
namespace {

using Complex = std::complex<double>;

// A C-contiguous, aligned array of T with any leading axes and the given last ones.
template <class T>
class Rows {
 public:
  Rows(py::handle object, const char* name, const std::vector<size_t>& last) : last_(last) {
    if (!py::isinstance<py::array>(object))
      throw py::type_error(std::string(name) + " must be a NumPy array");
    array_ = py::reinterpret_borrow<py::array>(object);
    if (!array_.dtype().is(py::dtype::of<T>()) && !array_.dtype().equal(py::dtype::of<T>())) {
      throw py::type_error(std::string(name) + " must have dtype " +
                           py::str(py::dtype::of<T>()).template cast<std::string>());
    }
    const auto axes = static_cast<size_t>(array_.ndim());
    bool same = axes >= last.size();
    for (size_t k = 0; same && k < last.size(); ++k) {
      same = static_cast<size_t>(array_.shape(static_cast<py::ssize_t>(axes - last.size() + k))) == last[k];
    }
    if (!same) {
      std::string wanted;
      for (size_t size : last) wanted += ", " + std::to_string(size);
      throw py::value_error(std::string(name) + " must have shape (.." + wanted + "), got " + text(array_));
    }
    constexpr int kFlags = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array_.flags() & kFlags) != kFlags) {
      throw py::value_error(std::string(name) + " must be C-contiguous and aligned");
    }
  }

  const T* data() const { return static_cast<const T*>(array_.data()); }
  size_t rows() const {
    size_t count = 1;
    for (py::ssize_t k = 0; k + static_cast<py::ssize_t>(last_.size()) < array_.ndim(); ++k) {
      count *= static_cast<size_t>(array_.shape(k));
    }
    return count;
  }
  // The leading axes followed by `rest`.
  std::vector<py::ssize_t> shape(const std::vector<size_t>& rest) const {
    std::vector<py::ssize_t> out;
    for (py::ssize_t k = 0; k + static_cast<py::ssize_t>(last_.size()) < array_.ndim(); ++k) {
      out.push_back(array_.shape(k));
    }
    for (size_t size : rest) out.push_back(static_cast<py::ssize_t>(size));
    return out;
  }

 private:
  std::vector<size_t> last_;
  py::array array_;
};

Basis basis_of(const Rns& r, py::handle object) {
  if (!py::isinstance<py::sequence>(object)) throw py::type_error("basis must be a sequence of integers");
  Basis found;
  for (py::handle item : object) found.push_back(integer(item, "basis", 0, r.count() - 1));
  if (found.empty() || found.size() > r.count()) throw py::value_error("basis must have 1 or more primes");
  return found;
}

uint64_t element_of(const Rns& r, py::handle object) {
  const uint64_t element = integer(object, "element", 1, 2 * r.n() - 1);
  if (element % 2 == 0) throw py::value_error("element must be odd");
  return element;
}

// Limbs of a polynomial over a data basis: the axis before the last.
size_t limbs_of(const Rns& r, py::handle object, const char* name, size_t extra) {
  if (!py::isinstance<py::array>(object)) throw py::type_error(std::string(name) + " must be a NumPy array");
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() < 2) throw py::value_error(std::string(name) + " must have two axes or more");
  const auto limbs = static_cast<size_t>(array.shape(array.ndim() - 2));
  if (limbs < 1 + extra || limbs - extra > r.count() - (r.count() > 1 ? 1 : 0)) {
    throw py::value_error(std::string(name) + " has " + std::to_string(limbs) + " limbs");
  }
  return limbs;
}

template <class T>
py::array_t<T> fresh(const std::vector<py::ssize_t>& shape) {
  return py::array_t<T>(shape);
}

void released(const std::function<void()>& work) {
  py::gil_scoped_release release;
  work();
}

py::array transform(const Rns& r, py::object a, py::object basis, bool inverse) {
  const Basis b = basis_of(r, basis);
  const Rows<uint64_t> in(a, "a", {b.size(), r.n()});
  auto out = fresh<uint64_t>(in.shape({b.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] {
    std::copy_n(in.data(), in.rows() * b.size() * r.n(), data);
    r.ntt(data, in.rows(), b, inverse);
  });
  return out;
}

py::array combine(const Rns& r, Rns::What what, py::object a, py::object b, py::object basis) {
  const Basis of = basis_of(r, basis);
  const Rows<uint64_t> x(a, "a", {of.size(), r.n()});
  const Rows<uint64_t> y(b, "b", {of.size(), r.n()});
  const bool single = y.shape({}).empty();
  if (!single && x.shape({}) != y.shape({})) {
    throw py::value_error("b must have the shape of a, or be one polynomial");
  }
  auto out = fresh<uint64_t>(x.shape({of.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] { r.combine(what, x.data(), y.data(), single, data, x.rows(), of); });
  return out;
}

py::array negate(const Rns& r, py::object a, py::object basis) {
  const Basis b = basis_of(r, basis);
  const Rows<uint64_t> in(a, "a", {b.size(), r.n()});
  auto out = fresh<uint64_t>(in.shape({b.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] {
    for (size_t k = 0; k < in.rows() * b.size(); ++k) {
      const uint64_t q = r.prime(b[k % b.size()]);
      for (size_t i = k * r.n(); i < (k + 1) * r.n(); ++i) data[i] = sub(0, in.data()[i], q);
    }
  });
  return out;
}

py::array scaled(const Rns& r, py::object a, py::object scalars, py::object basis) {
  const Basis b = basis_of(r, basis);
  const Rows<uint64_t> in(a, "a", {b.size(), r.n()});
  const Rows<uint64_t> w(scalars, "scalars", {b.size()});
  if (w.rows() != 1) throw py::value_error("scalars must have one axis");
  for (size_t k = 0; k < b.size(); ++k) {
    if (w.data()[k] >= r.prime(b[k])) throw py::value_error("scalars must be below their primes");
  }
  auto out = fresh<uint64_t>(in.shape({b.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] { r.scale(in.data(), w.data(), data, in.rows(), b); });
  return out;
}

py::array automorph(const Rns& r, py::object a, py::object element) {
  const uint64_t g = element_of(r, element);
  const Rows<uint64_t> in(a, "a", {r.n()});
  auto out = fresh<uint64_t>(in.shape({r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] { r.automorph(in.data(), data, in.rows(), g); });
  return out;
}

py::array lift(const Rns& r, py::object v, py::object basis) {
  const Basis b = basis_of(r, basis);
  const Rows<int64_t> in(v, "v", {r.n()});
  auto out = fresh<uint64_t>(in.shape({b.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] { r.lift(in.data(), data, in.rows(), b); });
  return out;
}

py::array lift_wide(const Rns& r, py::object words, py::object basis) {
  const Basis b = basis_of(r, basis);
  const Rows<uint64_t> in(words, "words", {r.n(), 2});
  auto out = fresh<uint64_t>(in.shape({b.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] { r.lift_wide(in.data(), data, in.rows(), b); });
  return out;
}

py::array compose(const Rns& r, py::object a, py::object basis) {
  const Basis b = basis_of(r, basis);
  if (b.size() > 4) throw py::value_error("basis must have at most 4 primes");
  const Rows<uint64_t> in(a, "a", {b.size(), r.n()});
  auto out = fresh<uint64_t>(in.shape({r.n(), 2}));
  uint64_t* data = out.mutable_data();
  bool fits = true;
  released([&] { fits = r.compose(in.data(), data, in.rows(), b); });
  if (!fits) throw py::value_error("a coefficient does not fit 128 bits");
  return out;
}

py::array to_ring64(const Rns& r, py::object a, py::object basis) {
  const Basis b = basis_of(r, basis);
  const Rows<uint64_t> in(a, "a", {b.size(), r.n()});
  auto out = fresh<uint64_t>(in.shape({r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] { r.to_ring64(in.data(), data, in.rows(), b); });
  return out;
}

constexpr uint64_t kMostPolynomials = 1 << 16;

py::array uniform(const Rns& r, py::object key, py::object count, py::object basis) {
  const uint8_t* k = bytes16(key, "key");
  const Basis b = basis_of(r, basis);
  const size_t rows = integer(count, "count", 0, kMostPolynomials);
  auto out = output<uint64_t>({rows, b.size(), r.n()});
  uint64_t* data = out.mutable_data();
  released([&] { r.uniform(k, data, rows, b); });
  return out;
}

py::array small(const Rns& r, py::object key, py::object count, bool ternary) {
  const uint8_t* k = bytes16(key, "key");
  const size_t rows = integer(count, "count", 0, kMostPolynomials);
  auto out = output<int64_t>({rows, r.n()});
  int64_t* data = out.mutable_data();
  released([&] { ternary ? r.ternary(k, data, rows) : r.binomial(k, data, rows); });
  return out;
}

py::array wide_uniform(const Rns& r, py::object key, py::object count, py::object bits) {
  const uint8_t* k = bytes16(key, "key");
  const size_t rows = integer(count, "count", 0, kMostPolynomials);
  const int b = static_cast<int>(integer(bits, "bits", 0, 120));
  auto out = output<uint64_t>({rows, r.n(), 2});
  uint64_t* data = out.mutable_data();
  released([&] { r.wide_uniform(k, data, rows, b); });
  return out;
}

py::array decompose(const Rns& r, py::object c) {
  const size_t l = limbs_of(r, c, "c", 0);
  const Rows<uint64_t> in(c, "c", {l, r.n()});
  if (in.rows() != 1) throw py::value_error("c must have two axes");
  auto out = output<uint64_t>({l, l + 1, r.n()});
  uint64_t* data = out.mutable_data();
  released([&] { r.decompose(in.data(), l, data); });
  return out;
}

py::array key_product(const Rns& r, py::object digits, py::object key, py::object element) {
  const uint64_t g = element_of(r, element);
  const size_t l = limbs_of(r, digits, "digits", 1) - 1;
  const Rows<uint64_t> in(digits, "digits", {l, l + 1, r.n()});
  const Rows<uint64_t> k(key, "key", {2, r.count(), r.n()});
  if (in.rows() != 1) throw py::value_error("digits must have three axes");
  if (k.shape({}).size() != 1 || k.rows() < l)
    throw py::value_error("key must have four axes, and a row a digit");
  auto out = output<uint64_t>({2, l + 1, r.n()});
  uint64_t* data = out.mutable_data();
  released([&] { r.key_product(in.data(), l, k.data(), g, data); });
  return out;
}

py::array divided(const Rns& r, py::object a, bool special) {
  const size_t limbs = limbs_of(r, a, "a", special ? 1 : 0);
  if (limbs < 2) throw py::value_error("a must have two limbs or more");
  const size_t l = special ? limbs - 1 : limbs;
  const Rows<uint64_t> in(a, "a", {limbs, r.n()});
  auto out = fresh<uint64_t>(in.shape({limbs - 1, r.n()}));
  uint64_t* data = out.mutable_data();
  released([&] {
    special ? r.mod_down(in.data(), in.rows(), l, data) : r.rescale(in.data(), in.rows(), l, data);
  });
  return out;
}

py::array multiply_sum(const Rns& r, py::object x, py::object y, py::object basis) {
  const Basis b = basis_of(r, basis);
  const Rows<uint64_t> left(x, "x", {2, b.size(), r.n()});
  const Rows<uint64_t> right(y, "y", {b.size(), r.n()});
  if (left.shape({}).size() != 1 || left.shape({}) != right.shape({})) {
    throw py::value_error("x must have four axes, y three, and both the same count");
  }
  auto out = output<uint64_t>({2, b.size(), r.n()});
  uint64_t* data = out.mutable_data();
  released([&] { r.multiply_sum(left.data(), right.data(), left.rows(), data, b); });
  return out;
}

double scale_of(py::object scale) {
  const double s = py::cast<double>(scale);
  if (!(s > 0 && s < 0x1p120)) throw py::value_error("scale must be above 0 and below 2^120");
  return s;
}

py::array encode(const Rns& r, py::object slots, py::object scale, py::object basis) {
  const Basis b = basis_of(r, basis);
  const double s = scale_of(scale);
  const Rows<Complex> in(slots, "slots", {r.n() / 2});
  auto out = fresh<uint64_t>(in.shape({b.size(), r.n()}));
  uint64_t* data = out.mutable_data();
  bool fits = true;
  released([&] { fits = r.encode(in.data(), s, data, in.rows(), b); });
  if (!fits) throw py::value_error("a coefficient does not fit 62 bits");
  return out;
}

py::array decode(const Rns& r, py::object coefficients, py::object scale) {
  const double s = scale_of(scale);
  const Rows<double> in(coefficients, "coefficients", {r.n()});
  auto out = fresh<Complex>(in.shape({r.n() / 2}));
  Complex* data = out.mutable_data();
  released([&] { r.decode(in.data(), s, data, in.rows()); });
  return out;
}

std::unique_ptr<Rns> make(py::object n, py::object primes) {
  const size_t degree = integer(n, "n", 1024, 65536);
  if (!py::isinstance<py::sequence>(primes)) throw py::type_error("primes must be a sequence of integers");
  std::vector<uint64_t> found;
  for (py::handle item : primes) found.push_back(integer(item, "primes", 2, (uint64_t{1} << 61) - 1));
  py::gil_scoped_release release;
  return std::make_unique<Rns>(degree, found);
}

}  // namespace

void bind(py::module_& m) {
  using py::arg;
  py::class_<Rns>(m, "Rns")
      .def(py::init(&make), arg("n"), arg("primes"))
      .def(
          "ntt", [](const Rns& r, py::object a, py::object b) { return transform(r, a, b, false); }, arg("a"),
          arg("basis"))
      .def(
          "intt", [](const Rns& r, py::object a, py::object b) { return transform(r, a, b, true); }, arg("a"),
          arg("basis"))
      .def(
          "add",
          [](const Rns& r, py::object a, py::object b, py::object s) {
            return combine(r, Rns::What::kAdd, a, b, s);
          },
          arg("a"), arg("b"), arg("basis"))
      .def(
          "sub",
          [](const Rns& r, py::object a, py::object b, py::object s) {
            return combine(r, Rns::What::kSub, a, b, s);
          },
          arg("a"), arg("b"), arg("basis"))
      .def(
          "mul",
          [](const Rns& r, py::object a, py::object b, py::object s) {
            return combine(r, Rns::What::kMul, a, b, s);
          },
          arg("a"), arg("b"), arg("basis"))
      .def("neg", &negate, arg("a"), arg("basis"))
      .def("scale", &scaled, arg("a"), arg("scalars"), arg("basis"))
      .def("automorph", &automorph, arg("a"), arg("element"))
      .def("lift", &lift, arg("v"), arg("basis"))
      .def("lift_wide", &lift_wide, arg("words"), arg("basis"))
      .def("compose", &compose, arg("a"), arg("basis"))
      .def("to_ring64", &to_ring64, arg("a"), arg("basis"))
      .def("uniform", &uniform, arg("key"), arg("count"), arg("basis"))
      .def(
          "ternary", [](const Rns& r, py::object k, py::object c) { return small(r, k, c, true); },
          arg("key"), arg("count"))
      .def(
          "binomial", [](const Rns& r, py::object k, py::object c) { return small(r, k, c, false); },
          arg("key"), arg("count"))
      .def("wide_uniform", &wide_uniform, arg("key"), arg("count"), arg("bits"))
      .def("decompose", &decompose, arg("c"))
      .def("key_product", &key_product, arg("digits"), arg("key"), arg("element"))
      .def(
          "mod_down", [](const Rns& r, py::object a) { return divided(r, a, true); }, arg("a"))
      .def(
          "rescale", [](const Rns& r, py::object a) { return divided(r, a, false); }, arg("a"))
      .def("multiply_sum", &multiply_sum, arg("x"), arg("y"), arg("basis"))
      .def("encode", &encode, arg("slots"), arg("scale"), arg("basis"))
      .def("decode", &decode, arg("coefficients"), arg("scale"))
      .def_property_readonly("fast", &Rns::fast);
}

}  // namespace privinfer::rns
