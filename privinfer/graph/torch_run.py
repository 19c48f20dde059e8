"""The graph in torch, so that its weights can be trained; as :mod:`privinfer.graph.reference` computes it.

Only for the model owner's own training: nothing of a session passes through here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, reference

Tensor = Any
Weights = Mapping[str, Mapping[str, Tensor]]

_FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sigmoid": lambda torch, x: torch.sigmoid(x),
    "tanh": lambda torch, x: torch.tanh(x),
    "gelu": lambda torch, x: torch.nn.functional.gelu(x),
    "gelu_tanh": lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda torch, x: torch.nn.functional.silu(x),
    "softplus": lambda torch, x: torch.nn.functional.softplus(x),
    "log_sigmoid": lambda torch, x: torch.nn.functional.logsigmoid(x),
    "mish": lambda torch, x: torch.nn.functional.mish(x),
    "softsign": lambda torch, x: torch.nn.functional.softsign(x),
    "erf": lambda torch, x: torch.erf(x),
    "atan": lambda torch, x: torch.atan(x),
}


def load() -> Any:
    """Import torch; ConfigError with the command that helps where it is missing."""
    try:
        import torch  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise ConfigError("torch is not installed", hint="pip install 'privinfer[torch]'") from None
    return torch


def run(
    torch: Any,
    architecture: ir.Architecture,
    weights: Weights,
    inputs: Mapping[str, Tensor],
    watch: Callable[[str, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Evaluate a graph on tensors of one floating-point type.

    Parameters
    ----------
    torch : module
        As :func:`load` gives it.
    architecture : Architecture
        The graph.
    weights : mapping of mapping of Tensor
        By node and name, in the shapes of :class:`privinfer.graph.ir.Model`.
    inputs : mapping of Tensor
        Batch first.
    watch : callable, optional
        Called with the name and the value of what goes into each Polynomial, and which it is.

    Returns
    -------
    dict of Tensor
        Outputs by name.

    Raises
    ------
    ModelUnsupported
        An operator is not here; the message names the node.
    """
    values = {i.name: inputs[i.name] for i in architecture.inputs}
    for node in architecture.nodes:
        xs = [values[i] for i in node.inputs]
        if watch is not None and isinstance(node.op, ir.Polynomial):
            watch(node.name, position(node.op, xs[0]))
        values[node.name] = apply(torch, node, weights.get(node.name, {}), xs)
    return {o.name: values[o.value] for o in architecture.outputs}


def position(op: ir.Polynomial, x: Tensor) -> Tensor:
    """Where a value stands in the range of a polynomial: -1 and 1 are the ends."""
    return (2.0 * x - (op.low + op.high)) / (op.high - op.low)


def apply(torch: Any, node: ir.Node, weights: Mapping[str, Tensor], xs: list[Tensor]) -> Tensor:
    """One operator, batch first."""
    x, op = xs[0], node.op
    match op:
        case ir.Linear():
            return x @ weights["weight"] + weights["bias"]
        case ir.Conv2d():
            return torch.nn.functional.conv2d(
                _padded(torch, x, op.padding),
                weights["weight"],
                weights["bias"],
                stride=op.stride,
                dilation=op.dilation,
                groups=op.groups,
            )
        case ir.Scale():
            shape = [-1 if k == op.axis else 1 for k in range(x.dim())]
            return x * weights["weight"].reshape(shape) + weights["bias"].reshape(shape)
        case ir.AvgPool2d():
            divisor = torch.from_numpy(reference.pool_divisor(op, tuple(x.shape[1:]))).to(x.dtype)
            total = torch.nn.functional.avg_pool2d(
                _padded(torch, x, op.padding), op.kernel, op.stride, divisor_override=1
            )
            return total / divisor
        case ir.Relu():
            return torch.relu(x)
        case ir.Add():
            return x + xs[1]
        case ir.Multiply(factor):
            return x * factor
        case ir.Shift(offset):
            return x + offset
        case ir.Mul():
            return x * xs[1]
        case ir.MatMul():
            return x @ xs[1]
        case ir.Concat(axis):
            return torch.cat(xs, dim=axis)
        case ir.Reshape(to):
            return x.reshape(x.shape[0], *to)
        case ir.Transpose(order):
            return x.permute(0, *order)
        case ir.Sum(axis):
            return x.sum(dim=axis)
        case ir.Gather(axis, indices):
            there = torch.tensor([max(i, 0) for i in indices])
            y = x.index_select(axis, there)
            if min(indices) < 0:
                shape = [-1 if k == axis else 1 for k in range(y.dim())]
                y = y * torch.tensor([float(i >= 0) for i in indices]).to(y.dtype).reshape(shape)
            return y
        case ir.Polynomial():
            return _polynomial(position(op, x), op.coefficients)
        case ir.Function() if op.name in _FUNCTIONS and _whole(op):
            return _FUNCTIONS[op.name](torch, x)
    raise ModelUnsupported(f"node {node.name!r} ({type(op).__name__}): not yet in torch here")


def _whole(op: ir.Function) -> bool:
    """Whether the function goes on by itself beyond its range, near enough for a gradient."""
    return op.left is not None and op.right is not None


def _padded(torch: Any, x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    top, left, bottom, right = padding
    return torch.nn.functional.pad(x, (left, right, top, bottom)) if any(padding) else x


def _polynomial(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Clenshaw's rule."""
    one, two = 0.0 * t, 0.0 * t
    for c in reversed(coefficients[1:]):
        one, two = 2.0 * t * one - two + c, one
    return t * one - two + coefficients[0]


def finite(weights: Weights) -> bool:
    """Whether training left numbers."""
    return all(math.isfinite(float(v.detach().abs().sum())) for own in weights.values() for v in own.values())
