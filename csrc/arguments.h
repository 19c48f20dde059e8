// Arguments: what bindings check of NumPy arrays, integers and bytes before a kernel sees them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace privinfer {

namespace py = pybind11;

constexpr py::ssize_t kAny = -1;

inline std::string text(const py::array& array) {
  std::string out = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(array.shape(i));
  }
  return out + (array.ndim() == 1 ? ",)" : ")");
}

// A C-contiguous, aligned array of T (unsigned) with the given shape, kAny matching any size.
template <class T>
class Input {
 public:
  Input(py::handle object, const char* name, std::initializer_list<py::ssize_t> shape) {
    if (!py::isinstance<py::array>(object)) fail<py::type_error>(name, "must be a NumPy array");
    array_ = py::reinterpret_borrow<py::array>(object);
    const py::dtype type = array_.dtype();
    if (type.kind() != 'u' || type.itemsize() != sizeof(T) || type.byteorder() == '>') {
      fail<py::type_error>(name, "must have dtype uint" + std::to_string(8 * sizeof(T)));
    }
    bool same = array_.ndim() == static_cast<py::ssize_t>(shape.size());
    py::ssize_t axis = 0;
    for (py::ssize_t size : shape) {
      same = same && (size == kAny || array_.shape(axis) == size);
      ++axis;
    }
    if (!same) {
      std::string wanted;
      for (py::ssize_t size : shape) wanted += (size == kAny ? "*" : std::to_string(size)) + ", ";
      fail<py::value_error>(name, "must have shape (" + wanted + "), got " + text(array_));
    }
    constexpr int kFlags = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array_.flags() & kFlags) != kFlags) fail<py::value_error>(name, "must be C-contiguous and aligned");
  }

  const T* data() const { return static_cast<const T*>(array_.data()); }
  size_t size(int axis) const { return static_cast<size_t>(array_.shape(axis)); }
  py::ssize_t dim(int axis) const { return array_.shape(axis); }
  size_t total() const { return static_cast<size_t>(array_.size()); }

 private:
  template <class Error>
  [[noreturn]] static void fail(const char* name, const std::string& what) {
    throw Error(std::string(name) + " " + what);
  }

  py::array array_;
};

using U64 = Input<uint64_t>;
using U8 = Input<uint8_t>;

// An int (or anything with __index__) in [low, high].
inline uint64_t integer(py::handle object, const char* name, uint64_t low, uint64_t high) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) {
    PyErr_Clear();
    throw py::type_error(std::string(name) + " must be an integer");
  }
  const uint64_t value = PyLong_AsUnsignedLongLong(index.ptr());
  const bool overflow = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  if (overflow || value < low || value > high) {
    throw py::value_error(std::string(name) + " must be in " + std::to_string(low) + ".." +
                          std::to_string(high));
  }
  return value;
}

inline std::vector<int64_t> integers(py::handle object, const char* name, size_t count, uint64_t low) {
  if (!py::isinstance<py::sequence>(object) || py::len(object) != count) {
    throw py::type_error(std::string(name) + " must be a sequence of " + std::to_string(count) + " integers");
  }
  std::vector<int64_t> out;
  for (py::handle item : object) {
    out.push_back(static_cast<int64_t>(integer(item, name, low, (uint64_t{1} << 31) - 1)));
  }
  return out;
}

inline const uint8_t* bytes16(py::handle object, const char* name) {
  if (!PyBytes_Check(object.ptr())) throw py::type_error(std::string(name) + " must be bytes");
  if (PyBytes_GET_SIZE(object.ptr()) != 16) throw py::value_error(std::string(name) + " must have 16 bytes");
  return reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(object.ptr()));
}

// New output array; refuses shapes whose size in bytes does not fit.
template <class T>
py::array_t<T> output(std::initializer_list<size_t> shape) {
  size_t bytes = sizeof(T);
  std::vector<py::ssize_t> sizes;
  for (size_t size : shape) {
    sizes.push_back(static_cast<py::ssize_t>(size));
    if (size != 0 && __builtin_mul_overflow(bytes, size, &bytes))
      throw py::value_error("result is too large");
  }
  if (bytes > static_cast<size_t>(PY_SSIZE_T_MAX)) throw py::value_error("result is too large");
  return py::array_t<T>(sizes);
}

}  // namespace privinfer
