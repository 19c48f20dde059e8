"""Operators that ONNX has not: domain ``privinfer``, version 1, which :mod:`privinfer.graph.to_onnx` writes.

``Polynomial(X; low, high, coefficients)`` is :class:`privinfer.graph.ir.Polynomial`. Each attribute holds a
number or numbers, or a tensor of them where 24 bits are too few. Attributes are public, as those of all
operators are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from privinfer.graph.build_core import Value, refuse

if TYPE_CHECKING:
    from privinfer.graph.onnx_base import Reader

DOMAIN = "privinfer"
VERSION = 1
POLYNOMIAL = "Polynomial"
ATTRIBUTES = ("low", "high", "coefficients")


def known(node: Any) -> Callable[[Reader, Any], Value]:
    """How a node of this domain is converted, or a refusal."""
    return _polynomial if node.op_type == POLYNOMIAL else refuse("not yet")


def _polynomial(imp: Reader, node: Any) -> Value:
    found = {a.name for a in node.attribute}
    if found != set(ATTRIBUTES) or len(node.attribute) != len(ATTRIBUTES):
        refuse(f"its attributes have to be {', '.join(ATTRIBUTES)}")
    low, high, coefficients = (_numbers(imp, node, name) for name in ATTRIBUTES)
    if not len(low) == len(high) == 1:
        refuse("its range has to be two numbers")
    return imp.b.polynomial(imp.value(node), low[0], high[0], coefficients)


def _numbers(imp: Reader, node: Any, name: str) -> list[float]:
    given = imp.attr(node, name, None)
    array = imp.tensor(given) if isinstance(given, imp.onnx.TensorProto) else np.asarray(given)
    if array.dtype.kind not in "fiu":
        refuse(f"its attribute {name} holds no numbers")
    return [float(v) for v in array.reshape(-1)]
