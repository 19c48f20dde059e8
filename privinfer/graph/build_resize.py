"""Resizing of an axis as ONNX defines it, as a choice of positions or as a weighted sum of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privinfer.graph.build import Builder, Value, refuse

MAX_RESIZED = 1 << 14


@dataclass(frozen=True, slots=True)
class Mode:
    """How positions are found and what counts there; names as the ONNX operator Resize has them."""

    kind: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False


def resize(b: Builder, x: Value, axis: int, size: int, scale: float, mode: Mode) -> Value:
    """Bring one axis to `size`.

    Parameters
    ----------
    b : Builder
        Emits the nodes.
    x : Value
        The value.
    axis : int
        Its axis, batch included.
    size : int
        Positions afterwards.
    scale : float
        The ratio that positions are computed with, which rounding may have changed a little.
    mode : Mode
        See there.
    """
    old = x.shape[axis - 1]
    if not 1 <= size <= MAX_RESIZED or old > MAX_RESIZED or not scale > 0:
        refuse(f"an axis of {size} positions")
    at = [_coordinate(k, old, size, scale, mode.coordinates) for k in range(size)]
    if mode.kind == "nearest":
        return b.take(x, axis, [min(max(_round(v, mode.nearest), 0), old - 1) for v in at])
    weights = np.zeros((old, size))
    for k, v in enumerate(at):
        for position, weight in _taps(v, mode):
            inside = 0 <= position < old
            if inside or not mode.exclude_outside:
                weights[min(max(position, 0), old - 1), k] += weight
    if mode.exclude_outside:
        weights /= weights.sum(axis=0, keepdims=True)
    return b.resample(x, axis, weights)


def _coordinate(k: int, old: int, size: int, scale: float, how: str) -> float:
    match how:
        case "half_pixel":
            return (k + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (k + 0.5) / scale - 0.5 if size > 1 else 0.0
        case "half_pixel_symmetric":
            center = old / 2
            offset = center * (1 - size / (old * scale))
            return offset + (k + 0.5) / scale - 0.5
        case "align_corners":
            return k * (old - 1) / (size - 1) if size > 1 else 0.0
        case "asymmetric":
            return k / scale
        case "tf_half_pixel_for_nn":
            return (k + 0.5) / scale
        case _:
            refuse(f"not yet: coordinates of the kind {how!r}")


def _round(v: float, how: str) -> int:
    match how:
        case "round_prefer_floor":
            return math.ceil(v - 0.5)
        case "round_prefer_ceil":
            return math.floor(v + 0.5)
        case "floor":
            return math.floor(v)
        case "ceil":
            return math.ceil(v)
        case _:
            refuse(f"not yet: rounding of the kind {how!r}")


def _taps(v: float, mode: Mode) -> list[tuple[int, float]]:
    """Positions around a coordinate and what they weigh."""
    first = math.floor(v)
    t = v - first
    if mode.kind == "linear":
        return [(first, 1 - t), (first + 1, t)]
    if mode.kind != "cubic":
        refuse(f"not yet: interpolation of the kind {mode.kind!r}")
    a = mode.cubic

    def near(s: float) -> float:
        return ((a + 2) * s - (a + 3)) * s * s + 1

    def far(s: float) -> float:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a

    return [(first - 1, far(t + 1)), (first, near(t)), (first + 1, near(1 - t)), (first + 2, far(2 - t))]
