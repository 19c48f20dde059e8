"""Worst-case fixed-point error and value range of the example's network, from its weights alone.

Weights carry the names of the ONNX initialisers, `<layer>.weight` and `<layer>.bias`, dense weights as
(out, in), plus `bn.{scale,bias,mean,var}` of the batch norm behind the first convolution, which has no bias.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = dict[str, Floats]

FRACTION_BITS = 16
STEP = 2.0**-FRACTION_BITS
LAYER_ERROR = 1.5 * STEP  # one truncation (a unit in the last place) and one rounded bias (half)
INPUT_ERROR = {"xray": STEP / 2, "dna": 0.0, "blood": STEP / 2}  # dosages are integers
BN_EPSILON = 1e-5
PICTURE = (1, 28, 28)
STRIDE = 2
PADDING = {"conv1": 2, "conv2": 1}


def conv2d(x: Floats, w: Floats, padding: int) -> Floats:
    """Convolve x (C, H, W) with w (O, C, k, k) at stride 2; zeros outside the picture."""
    k = w.shape[-1]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
    out: Floats = np.einsum("ocij,chwij->ohw", w, windows[:, ::STRIDE, ::STRIDE])
    return out


def fold(weights: Weights) -> Weights:
    """Return weights with the batch norm folded into the first convolution, in float64."""
    folded = {name: value.astype(np.float64) for name, value in weights.items() if not name.startswith("bn.")}
    scale = weights["bn.scale"].astype(np.float64) / np.sqrt(
        weights["bn.var"].astype(np.float64) + BN_EPSILON
    )
    folded["conv1.weight"] = folded["conv1.weight"] * scale[:, None, None, None]
    folded["conv1.bias"] = weights["bn.bias"] - weights["bn.mean"].astype(np.float64) * scale
    return folded


def worst_case_error(weights: Weights) -> float:
    """Bound the error of the logit in fixed point with 16 fractional bits, for every input.

    Layer by layer and element by element, e_out = |W| e_in + 1.5 * 2^-16; ReLU keeps e, as it is
    1-Lipschitz. Weights are taken as they are, see `weight_rounding`.

    Parameters
    ----------
    weights
        As described in the module's docstring.

    Returns
    -------
    float
        Largest possible |fixed point - real| of the logit.
    """
    w = {name: np.abs(value) for name, value in fold(weights).items()}
    e = np.full(PICTURE, INPUT_ERROR["xray"])
    for name, padding in PADDING.items():
        e = conv2d(e, w[f"{name}.weight"], padding) + LAYER_ERROR
    branches = [w["xray.weight"] @ e.ravel() + LAYER_ERROR]
    for name in ("dna", "blood"):
        matrix = w[f"{name}.weight"]
        branches.append(matrix @ np.full(matrix.shape[1], INPUT_ERROR[name]) + LAYER_ERROR)
    e = np.concatenate(branches)
    for name in ("joint", "risk"):
        e = w[f"{name}.weight"] @ e + LAYER_ERROR
    return float(e.max())


def weight_rounding(weights: Weights) -> float:
    """Return the largest distance of a folded weight from the grid of multiples of 2^-16."""
    return max(float(np.abs(value - np.round(value / STEP) * STEP).max()) for value in fold(weights).values())


def preactivation_bound(weights: Weights, ranges: dict[str, tuple[float, float]]) -> float:
    """Bound |pre-activation| anywhere in the network by interval arithmetic.

    Parameters
    ----------
    weights
        As described in the module's docstring.
    ranges
        Declared interval of each input.

    Returns
    -------
    float
        Largest absolute value any dense or convolution layer can put out, the logit included.
    """
    w = fold(weights)
    worst = 0.0

    def relu(low: Floats, high: Floats) -> tuple[Floats, Floats]:
        nonlocal worst
        worst = max(worst, float(np.abs(low).max()), float(np.abs(high).max()))
        return np.maximum(low, 0), np.maximum(high, 0)

    def dense(name: str, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        plus, minus = np.maximum(w[f"{name}.weight"], 0), np.minimum(w[f"{name}.weight"], 0)
        bias = w[f"{name}.bias"]
        return relu(plus @ low + minus @ high + bias, plus @ high + minus @ low + bias)

    low, high = (np.full(PICTURE, end) for end in ranges["xray"])
    for name, padding in PADDING.items():
        matrix, bias = w[f"{name}.weight"], w[f"{name}.bias"][:, None, None]
        plus, minus = np.maximum(matrix, 0), np.minimum(matrix, 0)
        low, high = relu(
            conv2d(low, plus, padding) + conv2d(high, minus, padding) + bias,
            conv2d(high, plus, padding) + conv2d(low, minus, padding) + bias,
        )
    parts = [dense("xray", low.ravel(), high.ravel())]
    for name in ("dna", "blood"):
        width = w[f"{name}.weight"].shape[1]
        parts.append(dense(name, *(np.full(width, end) for end in ranges[name])))
    low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    dense("risk", *dense("joint", low, high))
    return worst
