"""The two doors a model comes in by: import it, bound its values, fix what it says in public."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from privinfer.graph import ir
from privinfer.graph.ranges import declare

if TYPE_CHECKING:
    import onnx
    import torch

Ranges = Mapping[str, tuple[float, float]]
Functions = Mapping[str, tuple[Callable[[Any], Any], float, float]]


def from_onnx(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    ranges: Ranges | None = None,
    *,
    functions: Functions | None = None,
    comparison_bits: int | str = 32,
    fractional_bits: int = 16,
    calibration: Mapping[str, Any] | None = None,
    publish_error_bound: bool = True,
) -> ir.Model:
    """Load an ONNX model.

    Parameters
    ----------
    source : path, bytes or ModelProto
        The model with its weights inside.
    ranges : mapping, optional
        Closed range (low, high) of each input. Where none is given, that of the file's metadata
        (``privinfer.range.NAME`` = ``LOW:HIGH``), or (-16, 16). Owners' inputs are checked against it.
        Under the name of a node, what goes into its function: the argument of a logarithm or a root, the
        divisor of a division, the variance of a normalisation; what lies beyond counts as the end.
    functions : mapping of (callable, low, high), optional
        Functions of one variable of your own, by the type of a custom operator or by the name of a node:
        NumPy code from a float64 array to one of its shape, and the range it is needed on. No other party
        runs it or needs it; they see a table.
    comparison_bits : int or "auto"
        n, public: every value that is compared or shown has to fit n bits, 16 of them fractional.
    fractional_bits : int
        f, public.
    calibration : mapping of ndarray, optional
        Rows of the model owner's own data to take ranges from, where intervals cannot prove them; every
        report then says "calibrated".
    publish_error_bound : bool
        Whether the architecture carries the error bound, rounded up to a power of two: the session's
        parties then know how exact the answer is, and learn one coarse number about the weights.

    Returns
    -------
    Model
        Architecture and weights. Only the architecture is ever sent to another party in the clear.

    Raises
    ------
    ModelUnsupported
        The message names each node that cannot run and what could replace it.
    PrecisionError
        The message names the layer whose values may not fit.
    ConfigError
        The file cannot be read, or an option is wrong.
    """
    from privinfer.graph.from_onnx import from_onnx as load  # noqa: PLC0415 - onnx is optional

    return declare(
        load(source, ranges, functions=functions),
        comparison_bits=comparison_bits,
        fractional_bits=fractional_bits,
        calibration=calibration,
        publish_error_bound=publish_error_bound,
    )


def from_torch(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    ranges: Ranges | None = None,
    *,
    outputs: Sequence[str] | None = None,
    functions: Mapping[str, tuple[Callable[[Any], Any], float, float]] | None = None,
    comparison_bits: int | str = 32,
    fractional_bits: int = 16,
    calibration: Mapping[str, Any] | None = None,
    publish_error_bound: bool = True,
) -> ir.Model:
    """Load a torch module by way of torch.export.

    Parameters
    ----------
    module : torch.nn.Module
        The model; it is exported in eval mode.
    shapes : mapping of tuple
        Shape of each argument of forward by its name, batch axis included: ``{"xray": (1, 1, 28, 28)}``.
    ranges, comparison_bits, fractional_bits, calibration, publish_error_bound
        As in :func:`from_onnx`.
    outputs : sequence of str, optional
        Names of what forward returns; its keys where it returns a dictionary.
    functions : mapping of (callable, low, high), optional
        By paths of submodules, functions of one variable that take their places: elementwise on float64
        arrays, and the range that what goes in has to keep to. Their tables are public.

    Returns
    -------
    Model
        Architecture and weights.

    Raises
    ------
    ModelUnsupported, PrecisionError, ConfigError
        As in :func:`from_onnx`.
    """
    from privinfer.graph.from_torch import from_torch as load  # noqa: PLC0415 - torch is optional

    return declare(
        load(module, shapes, ranges, outputs=outputs, functions=functions),
        comparison_bits=comparison_bits,
        fractional_bits=fractional_bits,
        calibration=calibration,
        publish_error_bound=publish_error_bound,
    )
