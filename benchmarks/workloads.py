"""What is measured: a few networks with fixed random weights, once as data and once as privinfer models.

A :class:`Workload` is a list of steps and a dictionary of arrays. Every system walks the same list, so it
computes the same network on the same numbers; weights and inputs are float32 values, which all of them can
take as they are.

Importing this module needs NumPy alone: the peers do it too, in environments without privinfer.
"""

# ruff: noqa: D102 - the draft's and Float64's methods are named after the steps
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from privinfer.graph import ir

Array = npt.NDArray[Any]
Weights = dict[str, tuple[Array, Array]]
SEED = 20_240
STORY = {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}


@dataclass(frozen=True)
class Source:
    """One input: its shape without the batch, its declared range, its owner and how to draw it."""

    name: str
    shape: tuple[int, ...]
    low: float
    high: float
    owner: str
    draw: str  # "uniform", "genotype" or "normal"

    def sample(self, rng: np.random.Generator, batch: int) -> Array:
        """Draw a batch, float32, within the range."""
        size = (batch, *self.shape)
        if self.draw == "uniform":
            x: Array = rng.random(size)
        elif self.draw == "genotype":  # copies of the rarer allele
            x = rng.binomial(2, 0.3, size)
        else:
            x = rng.normal(size=size)
        return np.clip(x, self.low, self.high).astype(np.float32)


@dataclass(frozen=True)
class Step:
    """One operator: conv, linear, relu, add, concat, flatten, maxpool, mean, sigmoid, gelu or softmax.

    `options` of conv are stride and padding, of maxpool kernel, stride and padding; linear weights are (in,
    out), convolution weights (out, in, height, width).
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """A network with its weights.

    Attributes
    ----------
    name : str
        As on the command line.
    sources : tuple of Source
        The inputs.
    steps : tuple of Step
        In order; the last one is the output.
    weights : dict
        From a step's name to (weight, bias), float32.
    rows : int or None
        The one batch size a micro workload is defined for; None where the caller chooses.
    """

    name: str
    sources: tuple[Source, ...]
    steps: tuple[Step, ...]
    weights: Weights
    rows: int | None = None

    def inputs(self, batch: int) -> dict[str, Array]:
        """Draw the same inputs every time for one batch size."""
        rng = np.random.default_rng([SEED, batch])
        return {s.name: s.sample(rng, batch) for s in self.sources}


# -- the catalogue -----------------------------------------------------------------------------------


class Draft:
    """Collects steps; every method returns the new step's name."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.gains: dict[str, float] = {}

    def put(self, name: str, op: str, *inputs: str, **options: int) -> str:
        self.steps.append(Step(name, op, inputs, options))
        return name

    def conv(
        self, name: str, x: str, into: int, out: int, kernel: int, stride: int, padding: int, gain: float = 1
    ) -> str:
        self.shapes[name], self.gains[name] = (out, into, kernel, kernel), gain
        return self.put(name, "conv", x, stride=stride, padding=padding)

    def linear(self, name: str, x: str, into: int, out: int, gain: float = 1) -> str:
        self.shapes[name], self.gains[name] = (into, out), gain
        return self.put(name, "linear", x)

    def relu(self, x: str) -> str:
        return self.put(f"{x}.relu", "relu", x)

    def done(self, name: str, sources: tuple[Source, ...], rows: int | None = None) -> Workload:
        rng = np.random.default_rng([SEED, len(self.steps), len(self.shapes)])
        weights: Weights = {}
        for step, shape in self.shapes.items():  # He: variance 2 over the number of inputs of a value
            fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
            weight = rng.normal(0, self.gains[step] * math.sqrt(2 / fan_in), shape)
            bias = rng.normal(0, 0.05, shape[0] if len(shape) == 4 else shape[1])
            weights[step] = weight.astype(np.float32), bias.astype(np.float32)
        return Workload(name, sources, tuple(self.steps), weights, rows)


def _sarah(
    name: str, side: int, convs: list[tuple[int, int, int]], snps: int, bloods: int, dense: list[int]
) -> Workload:
    """X-ray through convolutions of stride 2, genotypes and bloods through a layer each, then a fusion."""
    to_xray, to_dna, to_blood, to_fusion = dense
    d = Draft()
    h = "xray"
    for k, (into, out, kernel) in enumerate(convs):
        h = d.relu(d.conv(f"conv{k}", h, into, out, kernel, 2, kernel // 2))
        side = (side + 1) // 2
    h = d.put("flat", "flatten", h)
    h = d.relu(d.linear("xray_dense", h, convs[-1][1] * side * side, to_xray))
    g = d.relu(d.linear("dna_dense", "dna", snps, to_dna))
    b = d.relu(d.linear("blood_dense", "blood", bloods, to_blood))
    z = d.put("modalities", "concat", h, g, b)
    z = d.relu(d.linear("fusion", z, to_xray + to_dna + to_blood, to_fusion))
    d.linear("risk", z, to_fusion, 2, gain=0.7)  # no ReLU follows
    image = side * 2 ** len(convs)
    return d.done(
        name,
        (
            Source("xray", (1, image, image), 0, 1, STORY["xray"], "uniform"),
            Source("dna", (snps,), 0, 2, STORY["dna"], "genotype"),
            Source("blood", (bloods,), -5, 5, STORY["blood"], "normal"),
        ),
    )


def _resnet18(name: str, side: int) -> Workload:
    """ResNet-18 with batch norms folded in and two classes."""
    d = Draft()
    h = d.relu(d.conv("stem", "xray", 3, 64, 7, 2, 3))
    h = d.put("pool", "maxpool", h, kernel=3, stride=2, padding=1)
    width = 64
    for k, (out, stride) in enumerate(
        [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
    ):
        y = d.relu(d.conv(f"b{k}.first", h, width, out, 3, stride, 1))
        # half the usual gain keeps the sums of the residual branches near 1
        y = d.conv(f"b{k}.second", y, out, out, 3, 1, 1, gain=0.5)
        if stride != 1:
            h = d.conv(f"b{k}.shortcut", h, width, out, 1, stride, 0)
        h = d.relu(d.put(f"b{k}.sum", "add", y, h))
        width = out
    d.linear("classes", d.put("mean", "mean", h), 512, 2)
    return d.done(name, (Source("xray", (3, side, side), 0, 1, STORY["xray"], "uniform"),))


def _one_input(shape: tuple[int, ...]) -> tuple[Source, ...]:
    return (Source("x", shape, -8, 8, "hospital", "normal"),)


def _matmul() -> Workload:
    d = Draft()
    d.linear("product", "x", 1024, 1024)
    return d.done("matmul", _one_input((1024,)), rows=1024)


def _conv() -> Workload:
    d = Draft()
    d.conv("product", "x", 64, 64, 3, 1, 1)
    return d.done("conv", _one_input((64, 56, 56)), rows=1)


def _relu() -> Workload:
    d = Draft()
    d.relu("x")
    return d.done("relu", _one_input((1_000_000,)), rows=1)


def _curve(op: str, shape: tuple[int, ...], rows: int) -> Workload:
    d = Draft()
    d.put("curve", op, "x")
    return d.done(op, _one_input(shape), rows=rows)


CATALOGUE: dict[str, Callable[[], Workload]] = {
    "sarah": lambda: _sarah("sarah", 64, [(1, 8, 5), (8, 16, 3), (16, 32, 3)], 4096, 24, [64, 64, 32, 64]),
    "sarah-small": lambda: _sarah("sarah-small", 28, [(1, 4, 5)], 512, 16, [32, 16, 16, 16]),
    "resnet18-64": lambda: _resnet18("resnet18-64", 64),
    "resnet18-224": lambda: _resnet18("resnet18-224", 224),
    "matmul": _matmul,
    "conv": _conv,
    "relu": _relu,
    "sigmoid": lambda: _curve("sigmoid", (100_000,), 1),
    "gelu": lambda: _curve("gelu", (100_000,), 1),
    "softmax": lambda: _curve("softmax", (100,), 1000),
}


def load(name: str) -> Workload:
    """A workload by name; KeyError lists the known ones."""
    try:
        return CATALOGUE[name]()
    except KeyError:
        raise KeyError(f"unknown workload {name!r}; known: {', '.join(CATALOGUE)}") from None


# -- in the clear ------------------------------------------------------------------------------------


def evaluate(ops: Any, steps: tuple[Step, ...], weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """Walk the steps with a system's operators; `ops` has one method a kind of step."""
    values = dict(inputs)
    for step in steps:
        method = getattr(ops, step.op)
        values[step.name] = method(
            *(values[i] for i in step.inputs), *weights.get(step.name, ()), **step.options
        )
    return values[steps[-1].name]


class Float64:
    """The operators in NumPy's float64: what all systems are held against."""

    def _windows(self, x: Array, kernel: int, stride: int, padding: int) -> Array:
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        v = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
        return v[:, :, ::stride, ::stride]

    def conv(self, x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
        v = self._windows(x, weight.shape[2], stride, padding)
        y = np.tensordot(v, weight.astype(np.float64), axes=([1, 4, 5], [1, 2, 3]))
        return y.transpose(0, 3, 1, 2) + bias.astype(np.float64)[:, None, None]

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return np.asarray(x @ weight.astype(np.float64) + bias)

    def relu(self, x: Array) -> Array:
        return np.maximum(x, 0)

    def add(self, x: Array, y: Array) -> Array:
        return np.asarray(x + y)

    def concat(self, *xs: Array) -> Array:
        return np.concatenate(xs, axis=1)

    def flatten(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def maxpool(self, x: Array, kernel: int, stride: int, padding: int) -> Array:
        # everything pooled here comes from a ReLU, so a border of zeros changes no maximum
        return np.asarray(self._windows(x, kernel, stride, padding).max(axis=(4, 5)))

    def mean(self, x: Array) -> Array:
        return np.asarray(x.mean(axis=(2, 3)))

    def sigmoid(self, x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-x)))

    def gelu(self, x: Array) -> Array:
        return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)

    def softmax(self, x: Array) -> Array:
        y = np.exp(x - x.max(axis=1, keepdims=True))
        return np.asarray(y / y.sum(axis=1, keepdims=True))


def reference(work: Workload, inputs: Mapping[str, Array]) -> Array:
    """The output in float64."""
    wide = {k: v.astype(np.float64) for k, v in inputs.items()}
    return np.asarray(evaluate(Float64(), work.steps, work.weights, wide))


# -- as privinfer models -----------------------------------------------------------------------------


def as_model(work: Workload, calibration: Mapping[str, Array] | None = None) -> tuple[ir.Model, str]:
    """The same network for privinfer, with 32-bit comparisons.

    Parameters
    ----------
    work : Workload
        What to build.
    calibration : mapping of ndarray, optional
        Inputs to take ranges from where intervals cannot prove that 32 bits hold.

    Returns
    -------
    model : Model
        With its declared precision.
    basis : str
        "interval", or "calibrated on the benchmark's own input" and why.
    """
    from privinfer.errors import PrecisionError  # noqa: PLC0415 - the peers have no privinfer
    from privinfer.graph import ir  # noqa: PLC0415
    from privinfer.graph import reference as plain  # noqa: PLC0415
    from privinfer.graph.ranges import declare  # noqa: PLC0415

    shapes: dict[str, tuple[int, ...]] = {s.name: s.shape for s in work.sources}
    nodes: list[ir.Node] = []

    def put(name: str, op: ir.Op, *inputs: str) -> None:
        nodes.append(ir.Node(name, op, inputs))
        shapes[name] = op.shape(*(shapes[i] for i in inputs))

    for step in work.steps:
        x = shapes[step.inputs[0]]
        o = step.options
        match step.op:
            case "conv":
                out, _, height, width = work.weights[step.name][0].shape
                pads = (o["padding"],) * 4
                op: ir.Op = ir.Conv2d(x[0], out, (height, width), (o["stride"],) * 2, pads)
            case "linear":
                op = ir.Linear(*work.weights[step.name][0].shape)
            case "relu":
                op = ir.Relu()
            case "add":
                op = ir.Add()
            case "concat":
                op = ir.Concat(1)
            case "flatten":
                op = ir.Reshape((math.prod(x),))
            case "maxpool":
                channels, height, width = x
                taken, out = _windows_of(height, width, o["kernel"], o["stride"], o["padding"])
                put(f"{step.name}.flat", ir.Reshape((channels, height * width)), *step.inputs)
                put(f"{step.name}.taken", ir.Gather(2, taken), f"{step.name}.flat")
                put(
                    f"{step.name}.windows",
                    ir.Reshape((channels, o["kernel"] ** 2, *out)),
                    f"{step.name}.taken",
                )
                put(step.name, ir.Max(2), f"{step.name}.windows")
                continue
            case "sigmoid":
                op = ir.Function("sigmoid", -10.0, 10.0, 5e-5, 0.0, 0.0)
            case "gelu":
                op = ir.Function("gelu", -5.0, 5.0, 7e-5, 0.0, 1.0)
            case "softmax":
                op = ir.Softmax(1)
            case "mean":
                put(f"{step.name}.pool", ir.AvgPool2d((x[1], x[2]), (1, 1)), *step.inputs)
                put(step.name, ir.Reshape((x[0],)), f"{step.name}.pool")
                continue
            case _:
                raise ValueError(step.op)
        put(step.name, op, *step.inputs)
    model = ir.Model(
        ir.Architecture(
            tuple(ir.Input(s.name, s.shape, s.low, s.high) for s in work.sources),
            tuple(nodes),
            (ir.Output("output", work.steps[-1].name),),
        ),
        {name: {"weight": w, "bias": b} for name, (w, b) in work.weights.items()},
    )
    try:
        return declare(model, comparison_bits=32), "interval"
    except PrecisionError as error:
        if calibration is None:
            raise
        why = error.message
    # declare(calibration=...) still carries worst-case errors through every layer, which a deep network
    # outgrows; what is measured here is time, so it is enough that this very input fits with room to spare
    largest = 0.0

    def watch(name: str, value: Array) -> None:
        nonlocal largest
        largest = max(largest, float(np.abs(value).max(initial=0)))

    plain.run(model, {k: v.astype(np.float64) for k, v in calibration.items()}, watch)
    precision = ir.Precision(16, 32, "calibrated")
    if largest * 16 > 2.0 ** (precision.comparison_bits - 1 - precision.fractional_bits):
        raise PrecisionError(f"values of {work.name} reach {largest:.3g}")
    seen = f"calibrated on the benchmark's own input, whose values reach {largest:.3g} ({why})"
    return model.with_precision(precision), seen


def _windows_of(
    height: int, width: int, kernel: int, stride: int, padding: int
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Positions that each window takes, tap by tap (-1: a zero of the border), and how many windows."""
    places = np.arange(height * width).reshape(1, 1, height, width) + 1
    v = Float64()._windows(places, kernel, stride, padding)[0, 0] - 1
    return tuple(int(i) for i in v.transpose(2, 3, 0, 1).ravel()), (v.shape[0], v.shape[1])
