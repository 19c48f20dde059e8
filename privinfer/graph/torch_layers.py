"""ATen operators of layers: linear ones, norms, pools, functions of one variable, attention, recurrent cells.

How the methods are named and called stands in :mod:`privinfer.graph.torch_ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from privinfer.graph import build
from privinfer.graph.build import Const, Value, refuse
from privinfer.graph.build_parts import Cell
from privinfer.graph.torch_ops import APART, Args, Moved, Operands, sizes

STATISTICS = "never with statistics of the batch: call .eval() and keep track_running_stats"

# operators that are one function of functions.py
SMOOTH = {
    "sigmoid": "sigmoid", "tanh": "tanh", "silu": "silu", "mish": "mish", "erf": "erf", "exp": "exp",
    "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt", "reciprocal": "reciprocal", "sin": "sin", "cos": "cos",
    "atan": "atan", "log_sigmoid": "log_sigmoid",
}  # fmt: skip


class Linear(Operands):
    """Operators with weights."""

    def _op_linear(self, a: Args) -> Value:
        x, w = self.value(a.input), self.weights(a.weight)
        if w.ndim != 2:
            refuse(f"not yet: weights with {w.ndim} axes instead of 2")
        return self.b.linear(x, w.T, self.weights(a.bias))

    def _op_conv2d(self, a: Args) -> Value:
        x, w = self.value(a.input), self.weights(a.weight)
        n = w.ndim - 2
        if n not in (1, 2) or x.rank != w.ndim:
            refuse(f"not yet: convolution over {max(n, 0)} axes of a value with {x.rank}")
        stride, dilation = sizes(a.stride, n), sizes(a.dilation, n)
        if getattr(a, "transposed", False):
            pads, extra = sizes(a.padding, n) * 2, sizes(a.output_padding, n)
            return self.b.conv_transpose(x, w, self.weights(a.bias), stride, pads, dilation, a.groups, extra)
        if a.padding == "same":
            x = self.b.plain(x)
            each = zip(x.shape[1:], w.shape[2:], stride, dilation, strict=True)
            ends = [build.same_padding(*s, upper=True) for s in each]
            pads = [e[0] for e in ends] + [e[1] for e in ends]
        else:
            pads = [0] * 2 * n if a.padding == "valid" else sizes(a.padding, n) * 2
        return self.b.conv(x, w, self.weights(a.bias), stride, pads, dilation, a.groups)

    _op_convolution = _op_conv2d
    _op_conv1d = _op_conv2d

    def _op_conv_transpose2d(self, a: Args) -> Value:
        return self._op_conv2d(Args(**vars(a), transposed=True))

    _op_conv_transpose1d = _op_conv_transpose2d

    def _batch_norm(self, a: Args) -> Value:
        if getattr(a, "training", False) or a.running_mean is None or a.running_var is None:
            refuse(STATISTICS)
        x = self.value(a.input)
        mean, var = self.weights(a.running_mean), self.weights(a.running_var)
        gamma = np.ones_like(mean) if a.weight is None else self.weights(a.weight)
        beta = np.zeros_like(mean) if a.bias is None else self.weights(a.bias)
        return self.b.batch_norm(x, gamma, beta, mean, var, a.eps)

    def _op_batch_norm(self, a: Args) -> Value:
        return self._batch_norm(a)

    def _op__native_batch_norm_legit_no_training(self, a: Args) -> tuple[Value, None, None]:
        return self._batch_norm(a), None, None

    def _op__native_batch_norm_legit(self, a: Args) -> None:
        refuse(STATISTICS)

    def _op_layer_norm(self, a: Args) -> Value:
        x = self.value(a.input)
        axes = [k + x.rank - len(a.normalized_shape) for k in range(len(a.normalized_shape))]
        return self.b.layer_norm(x, axes, self.weights(a.weight), self.weights(a.bias), a.eps)

    def _op_native_layer_norm(self, a: Args) -> tuple[Value, None, None]:
        return self._op_layer_norm(a), None, None

    def _op_rms_norm(self, a: Args) -> Value:
        x = self.value(a.input)
        axes = [k + x.rank - len(a.normalized_shape) for k in range(len(a.normalized_shape))]
        eps = float(self.torch.finfo(self.torch.float32).eps) if a.eps is None else float(a.eps)
        return self.b.rms_norm(x, axes, self.weights(a.weight), eps)

    def _groups(self, a: Args, groups: int) -> Value:
        return self.b.group_norm(
            self.value(a.input), groups, self.weights(a.weight), self.weights(a.bias), a.eps
        )

    def _op_group_norm(self, a: Args) -> Value:
        return self._groups(a, a.num_groups)

    def _op_native_group_norm(self, a: Args) -> tuple[Value, None, None]:
        return self._groups(a, a.group), None, None

    def _op_instance_norm(self, a: Args) -> Value:
        return self._groups(a, self.value(a.input).shape[0]) if a.use_input_stats else self._batch_norm(a)


class Pools(Operands):
    """Operators that make one value of many."""

    def _windows(self, a: Args) -> tuple[Value, list[int], list[int], list[int]]:
        """The value, then kernel, stride and padding."""
        x = self.value(a.self)
        n = x.rank - 2
        kernel = sizes(a.kernel_size, n)
        stride = sizes(a.stride, n) if a.stride not in (None, []) else kernel
        return x, kernel, stride, sizes(a.padding, n) * 2

    def _op_avg_pool2d(self, a: Args) -> Value:
        x, kernel, stride, pads = self._windows(a)
        override = getattr(a, "divisor_override", None)
        if override not in (None, math.prod(kernel)):
            refuse("not yet: a divisor of its own")
        count = bool(a.count_include_pad) or override is not None
        return self.b.avg_pool(x, kernel, stride, pads, count, bool(a.ceil_mode))

    _op_avg_pool1d = _op_avg_pool2d

    def _op_adaptive_avg_pool2d(self, a: Args) -> Value:
        x = self.value(a.self)
        return self.b.adaptive_pool(x, sizes(a.output_size, x.rank - 2))

    _op__adaptive_avg_pool2d = _op_adaptive_avg_pool2d
    _op_adaptive_avg_pool1d = _op_adaptive_avg_pool2d

    def _op_max_pool2d(self, a: Args) -> Value:
        x, kernel, stride, pads = self._windows(a)
        return self.b.max_pool(x, kernel, stride, pads, sizes(a.dilation, x.rank - 2), bool(a.ceil_mode))

    _op_max_pool1d = _op_max_pool2d

    def _op_max_pool2d_with_indices(self, a: Args) -> tuple[Value, None]:
        return self._op_max_pool2d(a), None

    def _op_adaptive_max_pool2d(self, a: Args) -> tuple[Value, None]:
        x = self.value(a.self)
        return self.b.adaptive_pool(x, sizes(a.output_size, x.rank - 2), "max"), None

    _op_adaptive_max_pool1d = _op_adaptive_max_pool2d

    def _dims(self, a: Args) -> list[int]:
        dim = getattr(a, "dim", None)
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        return dims or refuse("never: over all axes it touches the batch axis (axis 0), name the axes")

    def _op_mean(self, a: Args) -> Value:
        return self.b.reduce(self.value(a.self), "mean", self._dims(a), bool(getattr(a, "keepdim", False)))

    def _op_sum(self, a: Args) -> Value:
        return self.b.reduce(self.value(a.self), "sum", self._dims(a), bool(getattr(a, "keepdim", False)))

    def _op_prod(self, a: Args) -> Value:
        return self.b.reduce(self.value(a.self), "prod", self._dims(a), bool(getattr(a, "keepdim", False)))

    def _op_logsumexp(self, a: Args) -> Value:
        return self.b.logsumexp(self.value(a.self), self._dims(a), bool(a.keepdim))

    def _op_amax(self, a: Args) -> Value:
        return self.b.reduce(self.value(a.self), "max", self._dims(a), bool(a.keepdim))

    def _op_amin(self, a: Args) -> Value:
        return self.b.reduce(self.value(a.self), "min", self._dims(a), bool(a.keepdim))

    def _op_max(self, a: Args) -> Any:
        if hasattr(a, "other"):
            return self.b.max_of(self.operand(a.self), self.operand(a.other))
        return self.b.top(self.value(a.self), self._dims(a)[0], keepdims=bool(a.keepdim))

    def _op_min(self, a: Args) -> Any:
        if hasattr(a, "other"):
            return self.b.min_of(self.operand(a.self), self.operand(a.other))
        return self.b.top(self.value(a.self), self._dims(a)[0], largest=False, keepdims=bool(a.keepdim))

    def _op_argmax(self, a: Args) -> Value:
        return self.b.argmax(self.value(a.self), self._dims(a)[0], bool(a.keepdim))

    def _op_argmin(self, a: Args) -> Value:
        return self.b.argmax(self.b.multiply(self.value(a.self), -1.0), self._dims(a)[0], bool(a.keepdim))

    def _op_topk(self, a: Args) -> tuple[Value, Value]:
        if a.k != 1:
            refuse(build.advice("topk", last=False))
        return self.b.top(self.value(a.self), a.dim, largest=bool(a.largest))

    def _op_cumsum(self, a: Args) -> Value:
        return self.b.cumsum(self.value(a.self), a.dim)

    def _op_softmax(self, a: Args, log: bool = False) -> Value | Moved:
        v = a.self
        if isinstance(v, Moved) and v.fused:
            if a.dim % v.rank == 0:
                self.value(v)
            y = self.b.softmax(v.value, a.dim % v.rank + 1, log)
            return Moved(y, 0, v.fused, v.node)
        x, axis, at = self.one_axis(v, a.dim)
        return self.shown(self.b.softmax(x, axis, log), at)

    _op__softmax = _op_softmax

    def _op_log_softmax(self, a: Args) -> Value | Moved:
        return self._op_softmax(a, log=True)

    _op__log_softmax = _op_log_softmax


class Activations(Operands):
    """Functions of one variable."""

    def smooth(self, op: str) -> Callable[[Args], Value]:
        """The converter of an operator that is a function of functions.py."""
        return lambda a: self.b.function(self.value(a.self), SMOOTH[op])

    def _op_log_sigmoid_forward(self, a: Args) -> tuple[Value, None]:
        return self.b.function(self.value(a.self), "log_sigmoid"), None

    def _op_gelu(self, a: Args) -> Value:
        return self.b.function(self.value(a.self), "gelu" if a.approximate == "none" else "gelu_tanh")

    def _op_softplus(self, a: Args) -> Value:
        beta = float(a.beta)
        y = self.b.function(self.b.multiply(self.value(a.self), beta), "softplus")
        return self.b.multiply(y, 1.0 / beta)

    def _op_elu(self, a: Args) -> Value:
        x, alpha, scale, inner = self.value(a.self), float(a.alpha), float(a.scale), float(a.input_scale)
        if (scale, inner * alpha) == (1, 1):
            return self.b.celu(x, alpha)
        if inner != 1:
            refuse("not yet: elu with an input scale of its own")
        return self.b.selu(x, alpha, scale)

    def _op_celu(self, a: Args) -> Value:
        return self.b.celu(self.value(a.self), float(a.alpha))

    def _op_selu(self, a: Args) -> Value:
        return self.b.selu(self.value(a.self))

    def _op_log1p(self, a: Args) -> Value:
        return self.b.function(self.b.shift(self.value(a.self), 1.0), "log")

    def _op_expm1(self, a: Args) -> Value:
        return self.b.shift(self.b.function(self.value(a.self), "exp"), -1.0)

    def _op_glu(self, a: Args) -> Value:
        x = self.value(a.self)
        axis = self.b.axis(a.dim, x.rank)
        half = x.shape[axis - 1] // 2
        first, second = (self.b.take(x, axis, tuple(range(k, k + half))) for k in (0, half))
        return self.b.multiply_values(first, self.b.function(second, "sigmoid"))

    # --- piecewise affine

    def _op_relu(self, a: Args) -> Value:
        return self.b.relu(self.value(a.self))

    def _op_clamp(self, a: Args) -> Value:
        low, high = (getattr(a, end, None) for end in ("min", "max"))
        x = self.value(a.self)
        low, high = (None if v is None else self.number(v, "a limit") for v in (low, high))
        if (low, high) == (0, None):
            return self.b.relu(x)
        return self.b.clip(x, low, high)

    _op_clamp_min = _op_clamp
    _op_clamp_max = _op_clamp

    def _op_hardtanh(self, a: Args) -> Value:
        return self._op_clamp(Args(self=a.self, min=a.min_val, max=a.max_val))

    def _op_relu6(self, a: Args) -> Value:
        return self._op_clamp(Args(self=a.self, min=0.0, max=6.0))

    def _op_leaky_relu(self, a: Args) -> Value:
        return self.b.leaky_relu(self.value(a.self), float(a.negative_slope))

    def _op_rrelu(self, a: Args) -> Value:
        if a.training:
            refuse("never: a random result cannot be agreed on")
        return self.b.leaky_relu(self.value(a.self), (float(a.lower) + float(a.upper)) / 2)

    def _op_prelu(self, a: Args) -> Value:
        x, w = self.value(a.self), self.weights(a.weight)
        slope = Const(w.reshape(-1, *(1,) * (x.rank - 2)) if w.size > 1 else w.reshape(1))
        return self.b.prelu(x, lambda v: self.b.mul(v, slope))

    _op__prelu_kernel = _op_prelu

    def _op_hardsigmoid(self, a: Args) -> Value:
        return self.b.hard_sigmoid(self.value(a.self), 1 / 6, 0.5)

    def _op_hardswish(self, a: Args) -> Value:
        return self.b.hard_swish(self.value(a.self))

    def _op_abs(self, a: Args) -> Value:
        return self.b.absolute(self.value(a.self))

    def _op_sign(self, a: Args) -> Value:
        return self.b.sign(self.value(a.self))

    _op_sgn = _op_sign

    def _op_threshold(self, a: Args) -> Value:
        return self.b.threshold(self.value(a.self), float(a.threshold), float(a.value))

    def _op_softshrink(self, a: Args) -> Value:
        at = float(a.lambd)
        return self.b.piecewise(self.value(a.self), (-at, at), (0.0, 0.0), (-1.0, 1.0), 1.0, at)

    def _op_hardshrink(self, a: Args) -> Value:
        return self.b.shrink(self.value(a.self), float(a.lambd), 0.0)

    # --- attention

    def _op_scaled_dot_product_attention(self, a: Args) -> Value:
        q, k, v = (self.value(x) for x in (a.query, a.key, a.value))
        if a.dropout_p:
            refuse("never: dropout in training mode is random, call .eval() before the export")
        if getattr(a, "enable_gqa", False):
            refuse("not yet: attention with different numbers of heads for queries and keys")
        mask = None if a.attn_mask is None else self.operand(a.attn_mask)
        return self.b.attention(q, k, v, a.scale, mask, bool(a.is_causal))


class Recurrent(Operands):
    """Recurrent layers, one step of time after the other."""

    def _op_lstm(self, a: Args) -> tuple[Any, ...]:
        return self._layers(a, "LSTM", (0, 3, 1, 2))

    def _op_gru(self, a: Args) -> tuple[Any, ...]:
        return self._layers(a, "GRU", (1, 0, 2))

    def _op_rnn_tanh(self, a: Args) -> tuple[Any, ...]:
        return self._layers(a, "RNN", (0,))

    def _op_rnn_relu(self, a: Args) -> tuple[Any, ...]:
        return self._layers(a, "RNN", (0,), (self.b.relu,))

    def _layers(self, a: Args, kind: str, order: tuple[int, ...], activations: Any = ()) -> tuple[Any, ...]:
        """All layers and ways; `order` takes the gates from torch's order to ONNX's."""
        if not hasattr(a, "input"):
            refuse("not yet: packed sequences, their lengths are private, replace by padding to one length")
        x, at = self.seen(a.input)
        if x.rank != 3 or at != (0 if a.batch_first else 1):
            refuse(f"{APART}: use batch_first=True")
        ways, each = (2 if a.bidirectional else 1), (4 if a.has_biases else 2)
        params = [self.weights(p) for p in a.params]
        hidden = params[1].shape[1]
        if len(params) != each * ways * a.num_layers:
            refuse("not yet: a recurrent layer with projections")
        hx = list(a.hx) if kind == "LSTM" else [a.hx]
        ends: list[list[Value]] = [[] for _ in hx]
        for layer in range(a.num_layers):
            made = []
            for way in range(ways):
                k = layer * ways + way
                own = params[each * k : each * (k + 1)] + [np.zeros(len(order) * hidden)] * (4 - each)
                w, u, b, c = (
                    v.reshape(len(order), hidden, *v.shape[1:])[list(order)].reshape(v.shape) for v in own
                )
                cell = Cell(kind, w, u, b, c, reverse=bool(way), activations=activations)
                every, *last = self.b.recurrent(x, cell, *(self._initial(h, k, x, hidden) for h in hx))
                made.append(every)
                for k, value in enumerate(last[: len(hx)]):
                    ends[k] += [] if value is None else [value]
            x = self.b.concat(made, 2) if ways > 1 else made[0]
        rows = [[self.b.unsqueeze(v, [1]) for v in values] for values in ends]
        return self.shown(x, at), *(Moved(self.b.concat(r, 1), 1, 0, self.label()) for r in rows)

    def _initial(self, h: Any, k: int, x: Value, hidden: int) -> Value | None:
        """One layer's initial state; None where the code itself makes it zero."""
        if self.private(h):
            y, at = self.seen(h)
            if at != 1:
                refuse(APART)
            return self.b.reshape(self.b.take(y, 1, (k,)), (self.b.batch, hidden))
        if id(h) in self.public and not h.any():
            return None
        rows = self.weights(h)[k]
        if (rows != rows[:1]).any():
            refuse("never: the initial state differs along the batch axis (axis 0)")
        return self.b.secret(rows[0], x)
