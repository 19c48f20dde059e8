// Binds the class Rns; see _kernels.pyi.
#pragma once

#include <pybind11/pybind11.h>

namespace privinfer::rns {

void bind(pybind11::module_& m);

}  // namespace privinfer::rns
