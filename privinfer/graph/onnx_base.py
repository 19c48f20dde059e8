"""What the conversions of ONNX operators see of a file: nodes, their attributes and what goes into them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from privinfer.errors import ConfigError
from privinfer.graph import ir
from privinfer.graph.build import Builder, Const, Value, refuse


class Reader:
    """A graph that is being read; :class:`privinfer.graph.from_onnx._Importer` does the reading.

    Attributes
    ----------
    onnx : module
        The onnx package.
    graph : onnx.GraphProto
        The graph.
    opset : int
        Of the default domain.
    b : Builder
        Emits the nodes.
    env : dict
        What each name of the graph has become; None where a node was refused.
    shown, read : set of str
        The outputs, and all names that somebody reads.
    readers : dict of set of str
        Types of the nodes that read a name.
    asked : set of str
        The attributes that were asked for.
    """

    onnx: Any
    graph: Any
    opset: int
    b: Builder
    env: dict[str, Value | Const | None]
    shown: set[str]
    read: set[str]
    readers: dict[str, set[str]]
    asked: set[str]

    def at(self, node: Any, k: int) -> Value | Const | None:
        """Input `k`, None where it is left out."""
        return self.env[node.input[k]] if k < len(node.input) and node.input[k] else None

    def operand(self, node: Any, k: int) -> Value | Const:
        """Input `k`, private or constant."""
        x = self.at(node, k)
        if x is None:
            refuse("it needs more operands")
        return self.whole(x) if isinstance(x, Value) else x

    def both(self, node: Any) -> tuple[Value | Const, Value | Const]:
        """The first two inputs."""
        return self.operand(node, 0), self.operand(node, 1)

    def value(self, node: Any, k: int = 0, *, moved: bool = False) -> Value:
        """Private input `k`; `moved` where the batch axis may stand elsewhere than in front."""
        x = self.at(node, k)
        if not isinstance(x, Value):
            refuse("not yet: a constant where a private value belongs")
        return x if moved else self.whole(x)

    @staticmethod
    def whole(x: Value) -> Value:
        """Give a value whose batch axis is in front; refuse others."""
        if x.at:
            refuse("never: it touches the batch axis (axis 0), which does not stand in front here")
        return x

    def optional(self, node: Any, k: int) -> Value | Const | None:
        """Input `k` in whatever form, None where it is left out."""
        return self.operand(node, k) if self.at(node, k) is not None else None

    def full(self, x: Value) -> tuple[int, ...]:
        """Shape as the file has it, batch included."""
        return (*x.shape[: x.at], self.b.batch, *x.shape[x.at :])

    def axis(self, x: Value, axis: int) -> int:
        """An axis as the file counts it, counted as if the batch were in front."""
        if not -x.rank <= axis < x.rank:
            refuse(f"there is no axis {axis} in a value of {x.rank} axes")
        axis %= x.rank
        if axis == x.at:
            refuse("never: it touches the batch axis (axis 0), samples have to stay apart")
        return axis + 1 if axis < x.at else axis

    def array(self, node: Any, k: int, attr: str = "") -> Any:
        """Constant input `k`, or the attribute that older opsets had; None where neither is given."""
        x = self.at(node, k)
        if isinstance(x, Value):
            refuse("not yet: a private value where a constant belongs")
        if x is None:
            given = self.attr(node, attr, None) if attr else None
            return None if given is None else np.asarray(given)
        return x.array

    def ints(self, node: Any, k: int, attr: str = "") -> list[int] | None:
        """As :meth:`array`, as a list of integers."""
        array = self.array(node, k, attr)
        return None if array is None else [int(v) for v in array.reshape(-1)]

    def weights(self, node: Any, k: int) -> Any:
        """Constant input `k` as secret weights, None where it is left out."""
        x = self.at(node, k)
        if isinstance(x, Value):
            refuse("not yet: private values where weights belong")
        return None if x is None else self.b.weights(x)

    def attr(self, node: Any, name: str, default: Any) -> Any:
        """An attribute; one that nobody asks for is refused."""
        self.asked.add(name)
        for a in node.attribute:
            if a.name == name:
                v = self.onnx.helper.get_attribute_value(a)
                return v.decode("ascii", "replace") if isinstance(v, bytes) else v
        return default

    def tensor(self, tensor: Any) -> Any:
        """Contents of a tensor; half precision becomes single."""
        kinds = self.onnx.TensorProto
        try:
            if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > ir.MAX_ELEMENTS:
                raise ValueError
            array = np.asarray(self.onnx.numpy_helper.to_array(tensor))
            if array.shape != tuple(tensor.dims):
                raise ValueError
            half = tensor.data_type in (kinds.FLOAT16, kinds.BFLOAT16)
            return array.astype(np.float32) if half else array
        except Exception as e:  # the helper raises what NumPy raises
            raise ConfigError(f"tensor {tensor.name!r}: its data do not match its shape and type") from e
