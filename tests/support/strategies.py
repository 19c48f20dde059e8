"""Random small architectures with random bounded weights, and inputs that fit them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from privinfer.errors import PrecisionError
from privinfer.graph import ir
from privinfer.graph.ranges import AUTO_BITS, declare

MAX_SIZE = 160  # elements of one value
RANGES = ((-1.0, 1.0), (0.0, 1.0), (-16.0, 16.0), (-3.0, 7.5), (2.5, 2.5), (-0.001, 0.0))

FUNCTIONS = (
    ("sigmoid", -10.0, 10.0, 1e-3, 0.0, 0.0),
    ("tanh", -5.0, 5.0, 1e-3, 0.0, 0.0),
    ("silu", -14.0, 14.0, 1e-3, 0.0, 1.0),
    ("log_sigmoid", -12.0, 12.0, 1e-3, 1.0, 0.0),
    ("exp", -16.0, 3.0, 1e-3, 0.0),
    ("sin", -4.0, 16.0, 1e-3),
    ("reciprocal", 0.5, 40.0, 1e-3),
    ("sqrt", 0.01, 40.0, 1e-3),
)

shapes = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
)


@st.composite
def windows(
    draw: st.DrawFn, shape: ir.Shape, *, dilated: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """Kernel, stride, padding and dilation of a window that fits a (C, H, W) value at least once."""
    kernel, stride, before, after, dilation = [], [], [], [], []
    for size in shape[1:]:
        k = draw(st.integers(1, 3))
        d = draw(st.integers(1, 2)) if dilated else 1
        most = k - 1 if not dilated else 2
        a, b = draw(st.integers(0, most)), draw(st.integers(0, most))
        if ir.conv_output(size, k, 1, a, b, d) < 1:
            k = d = 1
            a = b = 0
        kernel.append(k)
        dilation.append(d)
        before.append(a)
        after.append(b)
        stride.append(draw(st.integers(1, 3)))
    padding = (before[0], before[1], after[0], after[1])
    return (kernel[0], kernel[1]), (stride[0], stride[1]), padding, (dilation[0], dilation[1])


@st.composite
def conv2d(draw: st.DrawFn, shape: ir.Shape) -> ir.Conv2d:
    """A convolution of a (C, H, W) value, grouped or not."""
    kernel, stride, padding, dilation = draw(windows(shape, dilated=True))
    groups = draw(st.sampled_from([g for g in range(1, shape[0] + 1) if shape[0] % g == 0]))
    outputs = groups * draw(st.integers(1, 3))
    return ir.Conv2d(shape[0], outputs, kernel, stride, padding, dilation, groups)


@st.composite
def avg_pool2d(draw: st.DrawFn, shape: ir.Shape) -> ir.AvgPool2d:
    """An average over windows; divisors that are powers of two and others."""
    kernel, stride, padding, _ = draw(windows(shape, dilated=False))
    return ir.AvgPool2d(kernel, stride, padding, draw(st.booleans()))


def splits(size: int) -> list[ir.Shape]:
    """Shapes of up to three axes that hold `size` values."""
    found: list[ir.Shape] = [(size,)]
    for a in range(1, size + 1):
        if size % a == 0:
            found.append((a, size // a))
            found.extend((a, b, size // a // b) for b in range(1, size // a + 1) if size // a % b == 0)
    return found


@st.composite
def operators(draw: st.DrawFn, name: str, known: dict[str, ir.Shape]) -> tuple[ir.Op, tuple[str, ...]]:
    """An operator that takes the value `name`, and the names of all it takes."""
    shape = known[name]
    if not shape:  # what a sum over the only axis leaves
        return ir.Reshape((1,)), (name,)
    kinds = ["Linear", "Scale", "Relu", "Multiply", "Add", "Concat", "Reshape", "Transpose"]
    if len(shape) == 3:
        kinds += ["Conv2d", "Conv2d", "AvgPool2d", "AvgPool2d"]
    match draw(st.sampled_from(kinds)):
        case "Linear":
            return ir.Linear(shape[-1], draw(st.integers(1, 5))), (name,)
        case "Scale":
            axis = draw(st.integers(1, len(shape)))
            return ir.Scale(axis, shape[axis - 1]), (name,)
        case "Relu":
            return ir.Relu(), (name,)
        case "Multiply":
            return ir.Multiply(draw(st.sampled_from([0.5, -1.0, 1 / 3, 2.0, -0.7, 0.0, 1e-6]))), (name,)
        case "Add":
            return ir.Add(), (name, draw(st.sampled_from([k for k, v in known.items() if v == shape])))
        case "Concat":
            axis = draw(st.integers(1, len(shape)))
            rest = shape[: axis - 1] + shape[axis:]
            fit = [k for k, v in known.items() if len(v) == len(shape) and v[: axis - 1] + v[axis:] == rest]
            others = draw(st.lists(st.sampled_from(fit), max_size=2))
            return ir.Concat(axis), (name, *others)
        case "Reshape":
            return ir.Reshape(draw(st.sampled_from(splits(math.prod(shape))))), (name,)
        case "Transpose":
            return ir.Transpose(tuple(draw(st.permutations(range(1, len(shape) + 1))))), (name,)
        case "Conv2d":
            return draw(conv2d(shape)), (name,)
        case _:
            return draw(avg_pool2d(shape)), (name,)


@st.composite
def curved(draw: st.DrawFn, name: str, known: dict[str, ir.Shape]) -> tuple[ir.Op, tuple[str, ...]]:
    """An operator that is not linear, or that came with those."""
    shape = known[name]
    axis = draw(st.integers(1, len(shape)))
    some = st.sampled_from([-3.0, -0.7, 0.0, 0.1, 0.5, 1.0, 2.0])
    kinds = ["Piecewise", "Piecewise", "Function", "Mul", "Max", "Sum", "Gather", "Shift", "ArgMax"]
    if shape[axis - 1] > 1:
        kinds += ["Softmax", "Max"]
    if shape[-1] > 1:
        kinds.append("Normalize")
    pairs = [
        k
        for k, v in known.items()
        if len(v) == len(shape) > 1 and (*v[:-2], v[-2]) == (*shape[:-2], shape[-1])
    ]
    if pairs:
        kinds += ["MatMul"] * 2
    match draw(st.sampled_from(kinds)):
        case "Piecewise":
            breaks = tuple(sorted(draw(st.lists(some, min_size=1, max_size=3))))
            jumps, bends = (tuple(draw(some) for _ in breaks) for _ in range(2))
            jumps = jumps if draw(st.booleans()) else (0.0,) * len(breaks)
            return ir.Piecewise(breaks, jumps, bends, draw(some), draw(some)), (name,)
        case "Function":
            return ir.Function(*draw(st.sampled_from(FUNCTIONS))), (name,)
        case "ArgMax":
            return ir.ArgMax(axis), (name,)
        case "Normalize":
            return ir.Normalize(1e-2, draw(st.sampled_from([0.0, 0.0, 2.0**-6]))), (name,)
        case "MatMul":
            return ir.MatMul(), (name, draw(st.sampled_from(pairs)))
        case "Mul":
            return ir.Mul(), (name, draw(st.sampled_from([k for k, v in known.items() if v == shape])))
        case "Max":
            return ir.Max(axis), (name,)
        case "Sum":
            return ir.Sum(axis), (name,)
        case "Gather":
            picks = st.lists(st.integers(-1, shape[axis - 1] - 1), min_size=1, max_size=6)
            return ir.Gather(axis, tuple(draw(picks))), (name,)
        case "Shift":
            return ir.Shift(draw(some)), (name,)
        case _:
            return ir.Softmax(axis, draw(st.booleans())), (name,)


@st.composite
def architectures(
    draw: st.DrawFn, max_nodes: int = 7, max_inputs: int = 3, *, bent: bool = False
) -> ir.Architecture:
    """Chains and branches of linear operators and ReLU, of all if `bent`; one to three inputs."""
    known: dict[str, ir.Shape] = {}
    inputs = []
    for k in range(draw(st.integers(1, max_inputs))):
        low, high = draw(st.sampled_from(RANGES))
        inputs.append(ir.Input(f"in{k}", draw(shapes), low, high))
        known[inputs[-1].name] = inputs[-1].shape
    nodes: list[ir.Node] = []
    for k in range(draw(st.integers(0, max_nodes))):
        names = list(known)
        taken = draw(st.sampled_from(names if draw(st.booleans()) else names[-1:]))
        kind = curved if bent and draw(st.booleans()) and known[taken] else operators
        op, used = draw(kind(taken, known))
        shape = op.shape(*(known[i] for i in used))
        if math.prod(shape) > MAX_SIZE:
            continue
        nodes.append(ir.Node(f"n{k}", op, used))
        known[nodes[-1].name] = shape
    outputs = [ir.Output("last", list(known)[-1])]
    if draw(st.booleans()):
        outputs.append(ir.Output("other", draw(st.sampled_from(list(known)))))
    return ir.Architecture(tuple(inputs), tuple(nodes), tuple(outputs))


def random_model(
    architecture: ir.Architecture,
    seed: int,
    size: float = 1.0,
    change: Callable[[np.random.Generator, ir.Array], ir.Array] = lambda rng, array: array,
) -> ir.Model:
    """Weights and biases in [-size, size]."""
    rng = np.random.default_rng(seed)
    return ir.Model(
        architecture,
        {
            node: {name: change(rng, rng.uniform(-size, size, shape)) for name, shape in wanted.items()}
            for node, wanted in architecture.parameter_shapes().items()
        },
    )


@st.composite
def models(draw: st.DrawFn, max_nodes: int = 7, max_inputs: int = 3, *, bent: bool = False) -> ir.Model:
    """A model with declared precision: the smallest n, from a drawn one on, that interval analysis proves."""
    architecture = draw(architectures(max_nodes, max_inputs, bent=bent))
    model = random_model(architecture, draw(st.integers(0, 2**32)), draw(st.sampled_from([0.25, 1.0, 2.0])))
    f = draw(st.sampled_from([8, 12, 16]))
    first = draw(st.integers(0, len(AUTO_BITS) - 1))
    for n in AUTO_BITS[first:]:
        try:
            return declare(model, comparison_bits=n, fractional_bits=f)
        except PrecisionError:
            continue
    assume(False)
    raise AssertionError


def rows(architecture: ir.Architecture, batch: int, seed: int) -> dict[str, ir.Array]:
    """Inputs in their declared ranges: both ends and everything between."""
    rng = np.random.default_rng(seed)
    found = {}
    for source in architecture.inputs:
        inside = rng.uniform(source.low, source.high, (batch, *source.shape))
        ends = np.where(rng.integers(0, 2, inside.shape), source.low, source.high)
        pick = rng.integers(0, 3, (batch, *[1] * len(source.shape)))
        mixed = np.where(rng.integers(0, 2, inside.shape), inside, ends)
        found[source.name] = np.where(pick == 0, inside, np.where(pick == 1, ends, mixed))
    return found
