"""ONNX operators that compute with single numbers, and constants that a file leaves to be computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from privinfer.graph import ir, rewrite
from privinfer.graph.build import Const, Value, refuse, softened
from privinfer.graph.onnx_base import Reader

Operand = Value | Const
Result = Value | Const | None | list[Value | None]
Convert = Callable[[Reader, Any], Result]

TABLE: dict[str, Convert] = {}
FLOATS = (1, 10, 11, 16)
INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
BOOL = 9
MAX_FOLDED = 1 << 24


def op(*names: str) -> Callable[[Convert], Convert]:
    """Register the conversion of some operators."""

    def add(convert: Convert) -> Convert:
        TABLE.update(dict.fromkeys(names, convert))
        return convert

    return add


# --- constants

_FOLDS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "And": np.logical_and, "Ceil": np.ceil, "Equal": np.equal, "Exp": np.exp,
    "Floor": np.floor, "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal, "Log": np.log, "Max": np.maximum, "Min": np.minimum, "Mod": np.mod,
    "Not": np.logical_not, "Or": np.logical_or, "Reciprocal": np.reciprocal, "Sqrt": np.sqrt,
    "Where": np.where, "Xor": np.logical_xor,
}  # fmt: skip


def fold(imp: Reader, node: Any) -> Const | None:
    """Compute an operator on constants; None where that is not known how."""
    kind = node.op_type
    consts = [imp.at(node, k) for k in range(len(node.input))]
    arrays = [c.array if isinstance(c, Const) else None for c in consts]
    public = all(c.public for c in consts if isinstance(c, Const))
    if node.domain not in ("", "ai.onnx"):
        return None
    if kind in rewrite.CONSTANT_OPS:
        attrs = {a.name: imp.attr(node, a.name, None) for a in node.attribute}
        return Const(rewrite.fold_constant(kind, arrays, attrs), public)
    given: list[Any] = [a for a in arrays if a is not None]
    if len(given) != len(arrays):
        return None
    if kind in _FOLDS:
        _small(np.broadcast_shapes(*(a.shape for a in given)))
        return Const(np.asarray(_FOLDS[kind](*given)), public)
    if kind == "Pow":
        _small(np.broadcast_shapes(given[0].shape, given[1].shape))
        return Const(np.power(given[0], given[1]).astype(given[0].dtype), public)
    if kind == "Expand":
        shape = np.broadcast_shapes(given[0].shape, tuple(given[1].tolist()))
        _small(shape)
        return Const(np.broadcast_to(given[0], shape), public)
    if kind == "Tile":
        _small((given[0].size * math.prod(given[1].tolist()),))
        return Const(np.tile(given[0], given[1]), public)
    if kind == "Range":
        start, stop, step = (a.reshape(()) for a in given)
        _small((math.ceil(abs((float(stop) - float(start)) / float(step))),))
        return Const(np.arange(start, stop, step, dtype=start.dtype), public)
    return None


def _small(shape: tuple[int, ...]) -> None:
    if min(shape, default=0) < 0 or math.prod(shape) > MAX_FOLDED:
        refuse("its constant result is too large")


@op("Constant")
def _constant(imp: Reader, node: Any) -> Const:
    (a,) = node.attribute
    if a.name == "value":
        return Const(imp.tensor(a.t), public=True)
    kinds: dict[str, Any] = {"value_float": np.float32, "value_floats": np.float32}
    kinds |= {"value_int": np.int64, "value_ints": np.int64}
    if a.name not in kinds:
        refuse("not yet: a constant that is no dense tensor of numbers")
    return Const(np.asarray(imp.attr(node, a.name, None), dtype=kinds[a.name]), public=True)


@op("ConstantOfShape")
def _constant_of_shape(imp: Reader, node: Any) -> Const:
    shape = imp.array(node, 0)
    fill = imp.attr(node, "value", None)
    one = np.zeros(1, np.float32) if fill is None else imp.tensor(fill)
    negative = shape.ndim != 1 or min(shape, default=0) < 0
    if one.size != 1 or negative or math.prod(shape.tolist()) > 1 << 20:
        refuse("its shape is not possible")
    return Const(np.full(shape, one.reshape(())), public=True)


def _full(imp: Reader, node: Any) -> tuple[int, ...]:
    x = imp.at(node, 0)
    return imp.full(x) if isinstance(x, Value) else tuple(imp.array(node, 0).shape)


@op("Shape")
def _shape(imp: Reader, node: Any) -> Const:
    cut = slice(imp.attr(node, "start", 0), imp.attr(node, "end", None))
    return Const(np.asarray(_full(imp, node)[cut], dtype=np.int64), public=True)


@op("Size")
def _size(imp: Reader, node: Any) -> Const:
    return Const(np.asarray(math.prod(_full(imp, node)), dtype=np.int64), public=True)


@op("Identity")
def _identity(imp: Reader, node: Any) -> Result:
    return imp.at(node, 0)


@op("Cast", "CastLike")
def _cast(imp: Reader, node: Any) -> Result:
    x = imp.at(node, 0)
    if node.op_type == "CastLike":
        like = imp.at(node, 1)
        kind = like.array.dtype.kind if isinstance(like, Const) else "f"
        if isinstance(x, Const):
            return x if kind == x.array.dtype.kind else refuse("not yet: a constant of another type")
        if kind == "f":
            return x
        refuse("not yet: a private value in another type than floating point")
    to = imp.attr(node, "to", 0)
    if isinstance(x, Value) and imp.b.is_truth(x) and to in (*FLOATS, *INTEGERS, BOOL):
        return x
    whole = isinstance(x, Value) and imp.b.made_by(x, ir.ArgMax) is not None
    if to in FLOATS or (whole and to in INTEGERS):
        return x
    refuse("not yet: a private value in another type than floating point")


@op("Dropout")
def _dropout(imp: Reader, node: Any) -> Result:
    training = imp.array(node, 2)
    if training is not None and training.any():
        refuse("never: dropout in training mode is random, call .eval() before the export")
    return imp.at(node, 0)


# --- functions of one variable


def _plain(name: str, function: str) -> None:
    @op(name)
    def convert(imp: Reader, node: Any) -> Value:
        return imp.b.function(imp.value(node, moved=True), function)


for _name, _function in {
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Softplus": "softplus", "Softsign": "softsign",
    "Mish": "mish", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Sin": "sin", "Cos": "cos", "Atan": "atan",
}.items():  # fmt: skip
    _plain(_name, _function)


@op("Gelu")
def _gelu(imp: Reader, node: Any) -> Value:
    tanh = imp.attr(node, "approximate", "none") == "tanh"
    return imp.b.function(imp.value(node, moved=True), "gelu_tanh" if tanh else "gelu")


@op("Swish")
def _swish(imp: Reader, node: Any) -> Value:
    x, alpha = imp.value(node), float(imp.attr(node, "alpha", 1.0))
    if alpha == 0:
        return imp.b.multiply(x, 0.5)
    return imp.b.multiply(imp.b.function(imp.b.multiply(x, alpha), "silu"), 1 / alpha)


@op("SwiGLU")
def _swiglu(imp: Reader, node: Any) -> Value:
    gate, alpha = imp.value(node), float(imp.attr(node, "alpha", 1.0))
    if alpha <= 0:
        refuse("not yet: an alpha that is not positive")
    swish = imp.b.multiply(imp.b.function(imp.b.multiply(gate, alpha), "silu"), 1 / alpha)
    return imp.b.mul(swish, imp.operand(node, 1))


@op("Sinh", "Cosh")
def _hyperbolic(imp: Reader, node: Any) -> Value:
    x = imp.value(node)
    up, down = imp.b.function(x, "exp"), imp.b.function(imp.b.multiply(x, -1.0), "exp")
    return imp.b.multiply(imp.b.add(up, down, -1.0 if node.op_type == "Sinh" else 1.0), 0.5)


@op("Relu")
def _relu(imp: Reader, node: Any) -> Value:
    return imp.b.relu(imp.value(node, moved=True))


@op("LeakyRelu")
def _leaky_relu(imp: Reader, node: Any) -> Value:
    return imp.b.leaky_relu(imp.value(node), float(imp.attr(node, "alpha", 0.01)))


@op("PRelu")
def _prelu(imp: Reader, node: Any) -> Value:
    slope = imp.operand(node, 1)
    return imp.b.prelu(imp.value(node), lambda v: imp.b.mul(v, slope))


@op("ThresholdedRelu")
def _thresholded_relu(imp: Reader, node: Any) -> Value:
    return imp.b.threshold(imp.value(node), float(imp.attr(node, "alpha", 1.0)))


@op("Shrink")
def _shrink(imp: Reader, node: Any) -> Value:
    lambd, bias = float(imp.attr(node, "lambd", 0.5)), float(imp.attr(node, "bias", 0.0))
    if lambd < 0:
        refuse("not yet: a negative threshold")
    return imp.b.shrink(imp.value(node), lambd, bias)


@op("Elu")
def _elu(imp: Reader, node: Any) -> Value:
    return imp.b.elu(imp.value(node), float(imp.attr(node, "alpha", 1.0)))


@op("Celu")
def _celu(imp: Reader, node: Any) -> Value:
    alpha = float(imp.attr(node, "alpha", 1.0))
    return imp.b.celu(imp.value(node), alpha) if alpha > 0 else refuse("not yet: an alpha below 0")


@op("Selu")
def _selu(imp: Reader, node: Any) -> Value:
    alpha, gamma = imp.attr(node, "alpha", 1.67326319217681884765625), imp.attr(node, "gamma", 1.05070102214)
    return imp.b.selu(imp.value(node), float(alpha), float(gamma))


@op("HardSigmoid")
def _hard_sigmoid(imp: Reader, node: Any) -> Value:
    alpha, beta = imp.attr(node, "alpha", 0.2), imp.attr(node, "beta", 0.5)
    return imp.b.hard_sigmoid(imp.value(node), float(alpha), float(beta))


@op("HardSwish")
def _hard_swish(imp: Reader, node: Any) -> Value:
    return imp.b.hard_swish(imp.value(node))


@op("Abs")
def _abs(imp: Reader, node: Any) -> Value:
    return imp.b.absolute(imp.value(node))


@op("Sign")
def _sign(imp: Reader, node: Any) -> Value:
    return imp.b.sign(imp.value(node))


@op("Neg")
def _neg(imp: Reader, node: Any) -> Value:
    return imp.b.multiply(imp.value(node, moved=True), -1.0)


@op("Reciprocal")
def _reciprocal(imp: Reader, node: Any) -> Value:
    return imp.b.reciprocal(imp.value(node))


@op("Pow")
def _pow(imp: Reader, node: Any) -> Value:
    exponent = imp.array(node, 1)
    if exponent.size == 0 or not (exponent == exponent.flat[0]).all():
        refuse("not yet: powers that differ")
    x = imp.value(node)
    if exponent.ndim > x.rank or (exponent.size > 1 and exponent.shape != x.shape[-exponent.ndim :]):
        x = imp.b.expand(x, np.broadcast_shapes(exponent.shape, imp.full(x)))
    return imp.b.power(x, float(exponent.flat[0]))


@op("Clip")
def _clip(imp: Reader, node: Any) -> Value:
    """Limits of a file's own are as secret as other constants, but for 0."""
    x = imp.value(node)
    low, high = (_limit(imp, node, k, name) for k, name in ((1, "min"), (2, "max")))
    if all(c is None or c.public or not c.array.any() for c in (low, high)):
        ends = [None if c is None else float(c.array.reshape(())) for c in (low, high)]
        return imp.b.clip(x, *ends)
    y = x if low is None else imp.b.max_of(x, low)
    return y if high is None else imp.b.min_of(y, high)


def _limit(imp: Reader, node: Any, k: int, name: str) -> Const | None:
    array = imp.array(node, k, name)
    if array is None:
        return None
    if array.size != 1:
        refuse("its limits have to be single numbers")
    given = imp.at(node, k)
    public = given is None or (isinstance(given, Const) and given.public)
    number = np.asarray(array, dtype=np.float64).reshape(())
    return None if abs(float(number)) >= 3e38 else Const(number, public)


# --- arithmetic and comparisons


@op("Add", "Sub")
def _add(imp: Reader, node: Any) -> Value:
    x, y = imp.both(node)
    if onto_softmax(imp, node):
        x, y = (softened(v) if isinstance(v, Const) and v.array.dtype.kind == "f" else v for v in (x, y))
    return imp.b.add(x, y, sign=1.0 if node.op_type == "Add" else -1.0)


def onto_softmax(imp: Reader, node: Any) -> bool:
    """Whether all that reads a node's result is softmax."""
    return imp.readers.get(node.output[0]) == {"Softmax"} and node.output[0] not in imp.shown


@op("Mul")
def _mul(imp: Reader, node: Any) -> Value:
    return imp.b.mul(*imp.both(node))


@op("Div")
def _div(imp: Reader, node: Any) -> Value:
    return imp.b.div(*imp.both(node))


@op("Sum", "Mean")
def _sum(imp: Reader, node: Any) -> Value:
    total = imp.operand(node, 0)
    for k in range(1, len(node.input)):
        total = imp.b.add(total, imp.operand(node, k))
    if isinstance(total, Const):
        refuse("not yet: arithmetic of constants, fold them before the export")
    return total if node.op_type == "Sum" else imp.b.multiply(total, 1 / len(node.input))


@op("Max", "Min")
def _max(imp: Reader, node: Any) -> Value:
    join = imp.b.max_of if node.op_type == "Max" else imp.b.min_of
    best = imp.operand(node, 0)
    for k in range(1, len(node.input)):
        best = join(best, imp.operand(node, k))
    return best if isinstance(best, Value) else refuse("not yet: arithmetic of constants")


@op("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def _compare(imp: Reader, node: Any) -> Value:
    signs = {"Greater": ">", "GreaterOrEqual": ">=", "Less": "<", "LessOrEqual": "<="}
    return imp.b.compare(*imp.both(node), signs[node.op_type])


@op("Not", "And", "Or", "Xor")
def _logic(imp: Reader, node: Any) -> Value:
    if node.op_type == "Not":
        return imp.b.logical("not", imp.value(node))
    return imp.b.logical(node.op_type.lower(), imp.value(node, 0), imp.value(node, 1))


@op("Where")
def _where(imp: Reader, node: Any) -> Value:
    cond, x, y = (imp.operand(node, k) for k in range(3))
    if onto_softmax(imp, node):
        x, y = (softened(v) if isinstance(v, Const) else v for v in (x, y))
    return imp.b.where(cond, x, y)
