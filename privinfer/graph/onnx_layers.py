"""ONNX operators that bring several numbers together: layers, windows, reductions, parts, recurrence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from privinfer.graph import build, build_resize, ir
from privinfer.graph.build import Const, Value, refuse
from privinfer.graph.onnx_base import Reader
from privinfer.graph.onnx_ops import Result, op

# --- products of matrices


@op("Gemm")
def _gemm(imp: Reader, node: Any) -> Value:
    x, w, c = imp.value(node), imp.weights(node, 1), imp.weights(node, 2)
    if imp.attr(node, "transA", 0):
        refuse("never: it sums over the batch axis (axis 0)")
    if x.rank != 2 or w.ndim != 2:
        refuse("its operands have to be matrices")
    w = (w.T if imp.attr(node, "transB", 0) else w) * imp.attr(node, "alpha", 1.0)
    if c is not None:
        c = c.reshape((1,) * (2 - c.ndim) + c.shape) * imp.attr(node, "beta", 1.0)
        if c.shape[0] > 1 and (c == c[:1]).all():
            c = c[:1]
        if c.shape[0] > 1:
            refuse("never: its bias differs along the batch axis (axis 0)")
    return imp.b.linear(x, w, c)


@op("MatMul")
def _matmul(imp: Reader, node: Any) -> Value:
    x, y = imp.both(node)
    if isinstance(x, Value) and isinstance(y, Value):
        return imp.b.matmul_values(x, y)
    if isinstance(x, Value) and isinstance(y, Const):
        return imp.b.matmul(x, imp.b.weights(y))
    if isinstance(x, Const) and isinstance(y, Value):
        return imp.b.matmul_left(imp.b.weights(x), y)
    refuse("not yet: arithmetic of constants, fold them before the export")


@op("Einsum")
def _einsum(imp: Reader, node: Any) -> Value:
    operands = [imp.operand(node, k) for k in range(len(node.input))]
    return imp.b.einsum(imp.attr(node, "equation", ""), operands)


@op("Attention")
def _attention(imp: Reader, node: Any) -> Result:
    if imp.at(node, 6) is not None:
        refuse("not yet: caches of different lengths")
    q, k, v = (imp.value(node, i) for i in range(3))
    heads = (imp.attr(node, "q_num_heads", 0), imp.attr(node, "kv_num_heads", 0))
    flat = q.rank == 3
    if flat:
        q, k, v = (_heads(imp, x, n) for x, n in ((q, heads[0]), (k, heads[1]), (v, heads[1])))
    offset = 0
    if imp.at(node, 4) is not None:
        past = imp.value(node, 4)
        offset = past.shape[1]
        k, v = imp.b.concat([past, k], 2), imp.b.concat([imp.value(node, 5), v], 2)
    present = [k, v]
    if q.rank != 4 or q.shape[0] % k.shape[0]:
        refuse("its heads do not fit")
    if q.shape[0] != k.shape[0]:
        again = np.repeat(np.arange(k.shape[0]), q.shape[0] // k.shape[0]).tolist()
        k, v = (imp.b.take(x, 1, again) for x in (k, v))
    scale = imp.attr(node, "scale", None)
    y = imp.b.attention(
        q, k, v,
        None if scale is None else float(scale),
        imp.optional(node, 3),
        bool(imp.attr(node, "is_causal", 0)),
        float(imp.attr(node, "softcap", 0.0)),
        (imp.attr(node, "left_window_size", -1), imp.attr(node, "right_window_size", -1)),
        offset,
    )  # fmt: skip
    if flat:
        y = imp.b.swap(y, 1, 2)
        y = imp.b.sample(y, (y.shape[0], y.shape[1] * y.shape[2]))
    return [y, *present]


@op("RotaryEmbedding")
def _rotary(imp: Reader, node: Any) -> Value:
    x, cos, sin = imp.b.plain(imp.value(node)), imp.weights(node, 1), imp.weights(node, 2)
    places, dim = imp.array(node, 3), imp.attr(node, "rotary_embedding_dim", 0)
    flat, heads = x.rank == 3, imp.attr(node, "num_heads", 0)
    y = _heads(imp, x, heads) if flat else x
    if y.rank != 4 or cos is None or cos.shape != sin.shape:
        refuse("its caches do not fit")
    if places is not None:
        cos, sin = cos[places], sin[places]
    if cos.ndim != 3 or not (cos == cos[:1]).all() or not (sin == sin[:1]).all():
        refuse("never: its places differ along the batch axis (axis 0)")
    cos, sin = cos[0][None], sin[0][None]  # (1, tokens, half)
    size = dim or y.shape[-1]
    half = size // 2
    if imp.attr(node, "interleaved", 0):
        first, second = range(0, size, 2), range(1, size, 2)
    else:
        first, second = range(half), range(half, size)
    a, b = imp.b.take(y, 3, first), imp.b.take(y, 3, second)
    parts = [
        imp.b.add(imp.b.affine(a, cos, 0.0), imp.b.affine(b, sin, 0.0), -1.0),
        imp.b.add(imp.b.affine(a, sin, 0.0), imp.b.affine(b, cos, 0.0)),
    ]
    if size < y.shape[-1]:
        parts.append(imp.b.take(y, 3, range(size, y.shape[-1])))
    order = [*first, *second, *range(size, y.shape[-1])]
    z = imp.b.take(imp.b.concat(parts, 3), 3, np.argsort(order).tolist())
    return imp.b.sample(imp.b.swap(z, 1, 2), x.shape) if flat else z


def _heads(imp: Reader, x: Value, heads: int) -> Value:
    if x.rank != 3 or heads < 1 or x.shape[1] % heads:
        refuse("its heads do not divide the features")
    return imp.b.swap(imp.b.sample(x, (x.shape[0], heads, x.shape[1] // heads)), 1, 2)


# --- windows


def _window(imp: Reader, node: Any, x: Value, kernel: Sequence[int]) -> tuple[list[int], ...]:
    """Stride, dilation and padding of a convolution or pooling: what comes before all axes, then after."""
    n = len(kernel)
    stride = list(imp.attr(node, "strides", [1] * n))
    dilation = list(imp.attr(node, "dilations", [1] * n))
    auto = imp.attr(node, "auto_pad", "NOTSET")
    pads = list(imp.attr(node, "pads", [0] * 2 * n))
    if x.rank != n + 2 or not kernel:
        refuse("not yet: windows over anything but the axes behind (batch, channels)")
    if not (len(stride) == len(dilation) == n and min(*stride, *dilation, *kernel) >= 1):
        refuse("its window sizes have to be positive numbers, one for each axis")
    if auto == "NOTSET":
        if len(pads) != 2 * n:
            refuse("its padding needs two numbers for each axis")
        return stride, dilation, pads
    if auto == "VALID":
        return stride, dilation, [0] * 2 * n
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        refuse("its auto_pad is unknown")
    sizes = zip(imp.b.plain(x).shape[1:], kernel, stride, dilation, strict=True)
    ends = [build.same_padding(*s, upper=auto == "SAME_UPPER") for s in sizes]
    return stride, dilation, [a for a, _ in ends] + [b for _, b in ends]


@op("Conv")
def _conv(imp: Reader, node: Any) -> Value:
    x, w, bias = imp.value(node), imp.weights(node, 1), imp.weights(node, 2)
    if list(imp.attr(node, "kernel_shape", w.shape[2:])) != list(w.shape[2:]):
        refuse("kernel_shape does not match its weights")
    if w.ndim > 4:
        refuse("not yet: convolution over three axes")
    stride, dilation, pads = _window(imp, node, x, w.shape[2:])
    return imp.b.conv(x, w, bias, stride, pads, dilation, imp.attr(node, "group", 1))


@op("ConvTranspose")
def _conv_transpose(imp: Reader, node: Any) -> Value:
    x, w, bias = imp.value(node), imp.weights(node, 1), imp.weights(node, 2)
    n = w.ndim - 2
    if x.rank != n + 2 or n not in (1, 2):
        refuse("not yet: transposed convolution over anything but one axis or two")
    stride = list(imp.attr(node, "strides", [1] * n))
    dilation = list(imp.attr(node, "dilations", [1] * n))
    extra = list(imp.attr(node, "output_padding", [0] * n))
    pads = list(imp.attr(node, "pads", [0] * 2 * n))
    auto = imp.attr(node, "auto_pad", "NOTSET")
    wanted = imp.attr(node, "output_shape", None)
    reach = [dilation[k] * (w.shape[k + 2] - 1) + 1 for k in range(n)]
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [x.shape[k + 1] * stride[k] for k in range(n)]
    if wanted is not None:
        for k, size in enumerate(list(wanted)[-n:]):
            total = stride[k] * (x.shape[k + 1] - 1) + extra[k] + reach[k] - size
            if total < 0:
                extra[k], total = extra[k] - total, 0
            less = total // 2
            pads[k], pads[n + k] = (less, total - less) if auto == "SAME_UPPER" else (total - less, less)
    elif auto == "VALID":
        pads = [0] * 2 * n
    return imp.b.conv_transpose(x, w, bias, stride, pads, dilation, imp.attr(node, "group", 1), extra)


@op("BatchNormalization")
def _batch_norm(imp: Reader, node: Any) -> Value:
    if imp.attr(node, "training_mode", 0) or any(node.output[1:]):
        refuse("never in training mode: call .eval() before the export")
    if not imp.attr(node, "spatial", 1):
        refuse("not yet: statistics for every position (spatial = 0)")
    gamma, beta, mean, var = (imp.weights(node, k) for k in (1, 2, 3, 4))
    return imp.b.batch_norm(imp.value(node), gamma, beta, mean, var, imp.attr(node, "epsilon", 1e-5))


@op("AveragePool")
def _average_pool(imp: Reader, node: Any) -> Value:
    x, kernel = imp.value(node), list(imp.attr(node, "kernel_shape", []))
    stride, dilation, pads = _window(imp, node, x, kernel)
    count, ceil = (bool(imp.attr(node, a, 0)) for a in ("count_include_pad", "ceil_mode"))
    return imp.b.avg_pool(x, kernel, stride, pads, count, ceil, dilation)


@op("MaxPool")
def _max_pool(imp: Reader, node: Any) -> Value:
    x, kernel = imp.value(node), list(imp.attr(node, "kernel_shape", []))
    stride, dilation, pads = _window(imp, node, x, kernel)
    return imp.b.max_pool(x, kernel, stride, pads, dilation, bool(imp.attr(node, "ceil_mode", 0)))


@op("LpPool")
def _lp_pool(imp: Reader, node: Any) -> Value:
    x, kernel = imp.value(node), list(imp.attr(node, "kernel_shape", []))
    stride, dilation, pads = _window(imp, node, x, kernel)
    p, ceil = imp.attr(node, "p", 2), bool(imp.attr(node, "ceil_mode", 0))
    if p not in (1, 2):
        refuse("not yet: powers other than 1 and 2")
    y = imp.b.absolute(x) if p == 1 else imp.b.power(x, 2)
    total = imp.b.avg_pool(y, kernel, stride, pads, True, ceil, dilation)
    total = imp.b.multiply(total, float(math.prod(kernel)))
    return total if p == 1 else imp.b.function(total, "sqrt")


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(imp: Reader, node: Any) -> Value:
    x = imp.b.plain(imp.value(node))
    if x.rank < 3:
        refuse("it needs (batch, channels) and more axes")
    if node.op_type == "GlobalLpPool":
        p = imp.attr(node, "p", 2)
        if p not in (1, 2):
            refuse("not yet: powers other than 1 and 2")
        y = imp.b.reduce(imp.b.absolute(x) if p == 1 else imp.b.power(x, 2), "sum", range(2, x.rank), True)
        return y if p == 1 else imp.b.function(y, "sqrt")
    return imp.b.global_pool(x, "mean" if node.op_type == "GlobalAveragePool" else "max")


@op("Upsample", "Resize")
def _resize(imp: Reader, node: Any) -> Value:
    x = imp.b.plain(imp.value(node))
    old = node.op_type == "Upsample" or imp.opset < 11
    axes = list(imp.attr(node, "axes", range(x.rank)))
    axes = [a % x.rank for a in axes]
    scales = imp.array(node, 1 if old else 2, "scales")
    sizes = None if old else imp.ints(node, 3)
    scales = None if scales is None or not scales.size else [float(s) for s in scales.reshape(-1)]
    if imp.attr(node, "antialias", 0) or (
        sizes is not None and imp.attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        refuse("not yet: antialiasing, or a policy for the aspect ratio")
    mode = build_resize.Mode(
        imp.attr(node, "mode", "nearest"),
        "asymmetric" if old else imp.attr(node, "coordinate_transformation_mode", "half_pixel"),
        "floor" if old else imp.attr(node, "nearest_mode", "round_prefer_floor"),
        float(imp.attr(node, "cubic_coeff_a", -0.75)),
        bool(imp.attr(node, "exclude_outside", 0)),
    )
    given = sizes if scales is None else scales
    if given is None or len(given) != len(axes):
        refuse("its scales or sizes have to be one for each axis")
    for k, a in enumerate(axes):
        have = imp.full(x)[a]
        scale = scales[k] if scales is not None else given[k] / have
        size = math.floor(have * scale) if scales is not None else int(given[k])
        whole = float(have * scale).is_integer()
        if mode.coordinates == "align_corners" and not whole:
            refuse("not yet: align_corners with scales that give no whole sizes, where runtimes differ")
        if scale != 1 or size != have:
            x = build_resize.resize(imp.b, x, imp.b.axis(a, x.rank), size, scale, mode)
    return x


@op("DepthToSpace")
def _depth_to_space(imp: Reader, node: Any) -> Value:
    first = imp.attr(node, "mode", "DCR") == "DCR"
    return imp.b.depth_to_space(imp.value(node), imp.attr(node, "blocksize", 0), depth_first=first)


@op("SpaceToDepth")
def _space_to_depth(imp: Reader, node: Any) -> Value:
    first = imp.attr(node, "mode", "DCR") == "DCR"
    return imp.b.space_to_depth(imp.value(node), imp.attr(node, "blocksize", 0), depth_first=first)


# --- reductions


def _reduced(imp: Reader, node: Any) -> tuple[Value, list[int], bool]:
    """Value, axes, keepdims; no axes where nothing is to be done."""
    x, axes, keep = imp.value(node), imp.ints(node, 1, "axes"), bool(imp.attr(node, "keepdims", 1))
    if not axes and imp.attr(node, "noop_with_empty_axes", 0):
        if node.op_type not in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
            refuse("not yet: a reduction over no axis")
        return x, [], True
    if not axes:
        refuse("never: over all axes it touches the batch axis (axis 0)")
    return x, axes, keep


@op("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
def _reduce(imp: Reader, node: Any) -> Value:
    x, axes, keep = _reduced(imp, node)
    return imp.b.reduce(x, node.op_type.removeprefix("Reduce").lower(), axes, keep) if axes else x


@op("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
def _reduce_norm(imp: Reader, node: Any) -> Value:
    x, axes, keep = _reduced(imp, node)
    kind = node.op_type
    if kind == "ReduceL1":
        x = imp.b.absolute(x)
    elif kind != "ReduceLogSum":
        x = imp.b.power(x, 2)
    y = imp.b.reduce(x, "sum", axes, keep)
    last = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}.get(kind)
    return y if last is None else imp.b.function(y, last)


@op("ReduceLogSumExp")
def _logsumexp(imp: Reader, node: Any) -> Value:
    x, axes, keep = _reduced(imp, node)
    return imp.b.logsumexp(x, axes, keep)


@op("ArgMax", "ArgMin")
def _argmax(imp: Reader, node: Any) -> Value:
    x = imp.value(node)
    if node.op_type == "ArgMin":
        x = imp.b.multiply(x, -1.0)
    last = bool(imp.attr(node, "select_last_index", 0))
    return imp.b.argmax(x, imp.attr(node, "axis", 0), bool(imp.attr(node, "keepdims", 1)), last=last)


@op("TopK")
def _top(imp: Reader, node: Any) -> Result:
    count = imp.ints(node, 1, "k")
    x = imp.value(node)
    axis = imp.attr(node, "axis", -1)
    imp.attr(node, "sorted", 1)
    if count != [1]:
        refuse(build.advice("TopK", last=False))
    return list(imp.b.top(x, axis, largest=bool(imp.attr(node, "largest", 1))))


@op("CumSum")
def _cumsum(imp: Reader, node: Any) -> Value:
    axis = imp.ints(node, 1)
    if not axis:
        refuse("its axis has to be a number")
    exclusive, reverse = (bool(imp.attr(node, a, 0)) for a in ("exclusive", "reverse"))
    return imp.b.cumsum(imp.value(node), axis[0], exclusive, reverse)


@op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(imp: Reader, node: Any) -> Value:
    x = imp.b.plain(imp.value(node))
    old = imp.opset < 13
    axis = imp.b.axis(imp.attr(node, "axis", 1 if old else -1), x.rank)
    y = x
    if old:  # everything from the axis on counts as one
        y = imp.b.sample(x, (*x.shape[: axis - 1], math.prod(x.shape[axis - 1 :])))
    if node.op_type == "Hardmax":
        y = imp.b.hardmax(y, axis)
    else:
        y = imp.b.softmax(y, axis, node.op_type == "LogSoftmax")
    return imp.b.sample(y, x.shape)


# --- norms


@op("LayerNormalization", "RMSNormalization")
def _layer_norm(imp: Reader, node: Any) -> Value:
    x, w, b = imp.value(node), imp.weights(node, 1), imp.weights(node, 2)
    axes = list(range(imp.b.axis(imp.attr(node, "axis", -1), x.rank), x.rank))
    eps = imp.attr(node, "epsilon", 1e-5)
    if node.op_type == "RMSNormalization":
        return imp.b.rms_norm(x, axes, w, eps)
    return imp.b.layer_norm(x, axes, w, b, eps)


@op("InstanceNormalization")
def _instance_norm(imp: Reader, node: Any) -> Value:
    x, w, b = imp.value(node), imp.weights(node, 1), imp.weights(node, 2)
    return imp.b.group_norm(x, x.shape[0] if x.shape else 0, w, b, imp.attr(node, "epsilon", 1e-5))


@op("GroupNormalization")
def _group_norm(imp: Reader, node: Any) -> Value:
    x, w, b = imp.value(node), imp.weights(node, 1), imp.weights(node, 2)
    groups = imp.attr(node, "num_groups", 0)
    if imp.opset < 21 and w is not None and groups and x.shape[0] % groups == 0:  # one for each group
        w, b = (np.repeat(v, x.shape[0] // groups) for v in (w, b))
    return imp.b.group_norm(x, groups, w, b, imp.attr(node, "epsilon", 1e-5))


@op("MeanVarianceNormalization")
def _mean_variance(imp: Reader, node: Any) -> Value:
    return imp.b.layer_norm(imp.value(node), list(imp.attr(node, "axes", [0, 2, 3])), None, None, 1e-9)


@op("LpNormalization")
def _lp_normalization(imp: Reader, node: Any) -> Value:
    x, p = imp.b.plain(imp.value(node)), imp.attr(node, "p", 2)
    axis = imp.b.axis(imp.attr(node, "axis", -1), x.rank)
    if p == 2:
        y = imp.b.rms_norm(x, [axis], None, 0.0)
        return imp.b.multiply(y, 1 / math.sqrt(x.shape[axis - 1]))
    if p != 1:
        refuse("not yet: powers other than 1 and 2")
    return imp.b.divide(x, imp.b.reduce(imp.b.absolute(x), "sum", [axis], True))


@op("LRN")
def _lrn(imp: Reader, node: Any) -> Value:
    x, size = imp.b.plain(imp.value(node)), imp.attr(node, "size", 1)
    alpha, beta, bias = (
        float(imp.attr(node, k, v)) for k, v in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    if beta not in (0.5, 0.75, 1.0):
        refuse("not yet: a beta other than 1/2, 3/4 and 1")
    channels = x.shape[0] if x.shape else 0
    imp.b.room(channels, size)
    starts = np.arange(channels)[:, None] - (size - 1) // 2
    rows = starts + np.arange(size)[None, :]
    rows = np.where((rows >= 0) & (rows < channels), rows, -1)
    squares = imp.b.power(x, 2)
    total = imp.b._windows(squares, 1, rows, lambda v, axis: imp.b.emit(ir.Sum(axis), [v]))
    base = imp.b.shift(imp.b.multiply(total, alpha / size), bias)
    if beta == 1.0:
        return imp.b.divide(x, base)
    root = imp.b.function(base, "rsqrt")
    return imp.b.mul(x, root if beta == 0.5 else imp.b.mul(root, imp.b.function(root, "sqrt")))
