from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("PRIVINFER_BUILD_JOBS", default=2).install()

# No -march flag: every kernel carries its own target attribute and the best path is chosen at import.
kernels = Pybind11Extension(
    "privinfer._kernels",
    sources=sorted(glob("csrc/**/*.cpp", recursive=True)),
    depends=sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True)),
    include_dirs=["csrc"],
    cxx_std=17,
    # GCC 12 takes the undefined values inside its own AVX-512 headers for mistakes of ours.
    extra_compile_args=[
        "-O3",
        "-Wall",
        "-Wextra",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
)

setup(ext_modules=[kernels], cmdclass={"build_ext": build_ext})
