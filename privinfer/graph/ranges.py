"""Range and error analysis, by the model owner, when a model is loaded.

Every step of the fixed-point program gets an interval its values stay in and a bound on how far they
stray from the model in float64. Both are worst cases over ALL inputs in their declared ranges, element by
element: interval arithmetic through the layers (Moore, 1966), and the error of each rounding carried
forward through ``|W|``. The bounds know the secret weights, so they stay with the model owner; what is
published is only what :func:`declare` puts into the architecture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import InputError, PrecisionError
from privinfer.graph import bounds as bounds_of
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference, tables
from privinfer.graph.lower import compile_program

Array = npt.NDArray[np.float64]

# |error| of one truncating opening in units in the last place (protocols/mpc/opening.py derives it).
TRUNCATING_OPENING_ULP = 1.5
# What a linear layer under encryption adds (protocols/mpc/encrypted.py): one unit of the product's last place
# a key holder and one more, of at most 64, and every product drops MIN_WEIGHT_BITS or more.
ENCRYPTED_ULP = 65 * 2.0**-fp.MIN_WEIGHT_BITS
LOCAL_TRUNCATION_ULP = 1.0
MOVING = (fp.Extend, fp.Truncate, fp.Times, fp.Shape, fp.Permute, fp.Pick, fp.Reveal)
Promised = ir.Normalize | ir.Polynomial  # whose declared range rows are held against
AUTO_BITS = (24, 28, 32, 36, 40, 44, 48)


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of one step: every value lies in [low, high] and strays by at most `error`."""

    low: Array
    high: Array
    error: Array
    calibrated: bool = False

    @property
    def stray(self) -> Array:
        """How far beyond its interval the fixed-point number may lie; not at all if `calibrated`."""
        return np.zeros_like(self.error) if self.calibrated else self.error

    @property
    def magnitude(self) -> float:
        """Largest absolute value the fixed-point number can take; as far as was seen, if `calibrated`."""
        return float((np.maximum(np.abs(self.low), np.abs(self.high)) + self.stray).max())


def analyse(model: ir.Model, observed: Mapping[str, Any] | None = None, margin: float = 2.0) -> list[Bound]:
    """Bound every step of the model's program.

    Parameters
    ----------
    model : Model
        The model with its weights.
    observed : mapping of ndarray, optional
        Inputs (batch first). If given, intervals come from running these rows, widened by `margin`,
        and nothing is proved for other rows.
    margin : float
        How much wider than what was observed.

    Returns
    -------
    list of Bound
        One a step, arrays shaped (1, ...).
    """
    program = compile_program(model.architecture)
    f = program.precision.fractional_bits
    inputs = {i.name: i for i in model.architecture.inputs}
    rows = None if observed is None else check_inputs(model.architecture, observed)
    if rows is not None and not all(map(len, rows.values())):
        raise InputError("calibration needs at least one row")
    known = {t.key: t for t in model.architecture.tables}
    promised = {n.name: n.op for n in model.architecture.nodes if isinstance(n.op, Promised)}
    bounds: list[Bound] = []
    tried: list[Array] = []
    held: set[int] = set()
    for step in program.steps:
        xs = [bounds[i] for i in step.inputs]
        op = step.operation
        moved = program.steps[step.inputs[0]].type.frac - step.type.frac if xs else 0
        scale = 2.0**moved  # of the binary point
        if isinstance(op, fp.Source):
            source = inputs[op.input]
            shape = (1, *source.shape)
            bound = Bound(
                np.full(shape, source.low), np.full(shape, source.high), np.full(shape, 2.0 ** -(f + 1))
            )
        elif isinstance(op, fp.Bilinear):
            bound = _bilinear(step, op, xs[0], model.parameters[step.node], program)
        elif isinstance(op, fp.Rectify):
            bound = Bound(np.maximum(xs[0].low, 0), np.maximum(xs[0].high, 0), xs[0].error)
        elif isinstance(op, fp.Truncate):
            last = LOCAL_TRUNCATION_ULP * 2.0**-step.type.frac if op.shift else 0.0
            bound = Bound(xs[0].low, xs[0].high, xs[0].error + last)
        elif isinstance(op, fp.Extend | fp.Reveal):
            bound = xs[0]
        elif isinstance(op, bounds_of.CURVED):
            bound = Bound(*bounds_of.spread(step, op, xs, scale, known))
        else:
            bound = _local(step, op, xs, scale)
        if step.claim is not None:
            bound = _claimed(step.claim, bound, bounds)
        if rows is not None:
            _check_observed(step, [tried[i] for i in step.inputs], promised)
            value = _observe(step, op, rows, [tried[i] for i in step.inputs], model, scale)
            tried.append(value)
            if not isinstance(op, fp.Source):
                low, high = value.min(0, keepdims=True), value.max(0, keepdims=True)
                spare = (margin - 1) * np.maximum(np.abs(low), np.abs(high))
                # nothing is proved here, and worst-case errors of a deep net say nothing of real rows; but
                # what functions hold to, such as a softmax's not exceeding 1, is not widened
                curved = isinstance(op, bounds_of.CURVED) or step.claim is not None
                if curved or (isinstance(op, MOVING) and step.inputs[0] in held):
                    held.add(step.index)
                    low = np.minimum(low, np.maximum(low - spare, bound.low))
                    high = np.maximum(high, np.minimum(high + spare, bound.high))
                else:
                    low, high = low - spare, high + spare
                bound = Bound(low, high, bound.error, calibrated=True)
        bounds.append(bound)
    return bounds


def _check_observed(
    step: fp.Step, xs: list[Array], promised: dict[str, ir.Normalize | ir.Polynomial]
) -> None:
    """Raise where a row that was given breaks the range of a polynomial, or the lower end of a variance."""
    op = promised.get(step.node)
    if isinstance(op, ir.Polynomial) and enters(step.operation):
        del promised[step.node]  # its first clamp or table is where its value comes in
        _check_inside(step.node, op, float(xs[0].min()), float(xs[0].max()), "values of your rows")
    if not isinstance(op, ir.Normalize) or op.low == 0 or not isinstance(step.operation, fp.Pieces):
        return
    del promised[step.node]  # its first clamp is that of the variance
    low = step.operation.breaks[0] * 2.0**-step.type.frac
    seen = float(xs[0].min())
    if seen < low * (1 - 1e-3):
        raise PrecisionError(
            f"layer {step.node!r}: a variance of your rows is {op.low * seen / low:.3g}, but is declared "
            f"to be at least {op.low:g}",
            hint="declare its range wider",
        )


def enters(op: fp.Operation) -> bool:
    """Whether a function's value comes in here, if no step of the same node did so before."""
    return isinstance(op, fp.Pieces | fp.Table)


def _check_inside(node: str, op: ir.Polynomial, low: float, high: float, what: str) -> None:
    if low < op.low or high > op.high:
        raise PrecisionError(
            f"layer {node!r}: {what} lie in [{low:.3g}, {high:.3g}], but its polynomial is declared on "
            f"[{op.low:g}, {op.high:g}]",
            hint=f"fit a polynomial for a wider range; or {NARROWER}",
        )


def check_ranges(model: ir.Model, bounds: list[Bound]) -> None:
    """Raise PrecisionError naming the first layer whose values may not fit their ring."""
    for need in _needs(model, bounds):
        if need.reach >= need.room:
            raise PrecisionError(
                f"layer {need.node!r}: {need.what} {need.reach:.3g}, but {need.bits} bits "
                f"with {need.frac} of them fractional hold less than {need.room:.3g}",
                hint=NARROWER,
            )
    _check_domains(model, bounds)
    _check_variances(model, bounds)


def _check_variances(model: ir.Model, bounds: list[Bound]) -> None:
    """Raise where a variance may leave the range that norms have by themselves: it would be clamped.

    A range that the model owner declared is a promise, and part of what the model computes.
    """
    own = ir.Normalize(0.0)
    nodes = {n.name: n.op for n in model.architecture.nodes if isinstance(n.op, ir.Normalize)}
    for step in compile_program(model.architecture).steps:
        op = nodes.pop(step.node, None) if isinstance(step.operation, fp.Pieces) else None
        if (
            op is None
            or not isinstance(step.operation, fp.Pieces)
            or (op.low, op.high) != (own.low, own.high)
        ):
            continue
        # what is clamped is a multiple of the variance
        x, unit = bounds[step.inputs[0]], 2.0**-step.type.frac
        reach = float(x.high.max()) * op.high / (step.operation.breaks[1] * unit)
        if reach > op.high * (1 + 1e-6):
            raise PrecisionError(
                f"layer {step.node!r}: its variance may reach {reach:.3g}, and norms take up to {op.high:g}",
                hint=f"declare the range of that node's variance in ranges=; or {NARROWER}",
            )


def _check_domains(model: ir.Model, bounds: list[Bound]) -> None:
    """Raise where values may leave the range of a function that is not defined beyond.

    What the rows of a calibration gave was held against the range of a polynomial as it was seen: that range
    has its own margin already.
    """
    seen: set[str] = set()
    nodes = {n.name: n.op for n in model.architecture.nodes if isinstance(n.op, ir.Function | ir.Polynomial)}
    steps = compile_program(model.architecture).steps
    for step in steps:
        op = nodes.get(step.node)
        if op is None or step.node in seen or not enters(step.operation):
            continue
        seen.add(step.node)
        given = step.inputs[0]
        if isinstance(steps[given].operation, fp.Times) and steps[given].node != step.node:
            inner = steps[given].inputs[0]
            if steps[inner].node == steps[given].node:  # no product of the model's: stretched for its table
                given = inner
        x = bounds[given]
        low, high = float(x.low.min()), float(x.high.max())
        if isinstance(op, ir.Polynomial):
            if not x.calibrated:
                _check_inside(step.node, op, low, high, "values may")
            continue
        if (op.left is None and low < op.low) or (op.right is None and high > op.high):
            raise PrecisionError(
                f"layer {step.node!r}: values may lie in [{low:.3g}, {high:.3g}], but {op.name} is declared "
                f"on [{op.low:g}, {op.high:g}]",
                hint=f"declare a wider range of that function; or {NARROWER}",
            )


NARROWER = "declare narrower input ranges, or pass calibration= to trust the ranges seen on your own data"


@dataclass(frozen=True, slots=True)
class _Need:
    """How far a value, or what is compared in it, may reach in its ring; `spare` bits stay free."""

    node: str
    what: str
    reach: float
    bits: int
    frac: int
    spare: int = 0

    @property
    def room(self) -> float:
        """What the ring holds beside the sign."""
        return math.ldexp(1.0, self.bits - 1 - self.spare - self.frac)


def _needs(model: ir.Model, bounds: list[Bound]) -> Iterator[_Need]:
    """What each step's ring has to hold.

    A value has to fit its ring; one that is extended needs one bit more. What is compared is a difference, of
    a value and a break or of two values, and has to fit as well.
    """
    program = compile_program(model.architecture)
    extended = {s.inputs[0] for s in program.steps if isinstance(s.operation, fp.Extend)}
    for step, bound in zip(program.steps, bounds, strict=True):
        if isinstance(step.operation, fp.Pieces | fp.Larger):
            kind = program.steps[step.inputs[0]].type
            x = bounds[step.inputs[0]]
            if isinstance(step.operation, fp.Larger):
                yield _Need(step.node, "values may differ by", _apart(x), kind.bits, kind.frac)
            else:
                far = max(_beyond(x, b * 2.0**-kind.frac) for b in step.operation.breaks)
                yield _Need(step.node, "values may differ from a break by", far, kind.bits, kind.frac)
                if step.operation.slope and step.type.bits + step.operation.shift > kind.bits:
                    # the value itself is extended
                    yield _Need(step.node, "values may reach", x.magnitude, kind.bits, kind.frac, 1)
        spare = int(step.index in extended)
        yield _Need(step.node, "values may reach", bound.magnitude, step.type.bits, step.type.frac, spare)


def _beyond(x: Bound, at: float) -> float:
    """Largest distance of a value from a number."""
    return float((np.maximum(np.abs(x.low - at), np.abs(x.high - at)) + x.stray).max())


def _apart(x: Bound) -> float:
    """Largest difference of neighbours along the first axis, in the channel that is compared."""
    first, second = (Bound(x.low[:, k::2, 0], x.high[:, k::2, 0], x.stray[:, k::2, 0]) for k in (0, 1))
    reach = np.maximum(first.high - second.low, second.high - first.low)
    return float((reach + first.error + second.error).max())


def _fitting_bits(model: ir.Model, calibration: Mapping[str, Any] | None) -> int | None:
    """The comparison bits, more than the model has now, with which every layer fits; None if none do."""
    precision = model.architecture.precision
    n = precision.comparison_bits + 1
    while n <= ir.Precision.MAX_COMPARISON_BITS:
        try:
            wider = tables.tabulated(model.with_precision(dataclasses.replace(precision, comparison_bits=n)))
        except PrecisionError:
            return None
        try:
            bounds = analyse(wider, calibration)
            check_ranges(wider, bounds)
            return n
        except PrecisionError:
            needed = max(
                (
                    math.frexp(need.reach)[1] + need.frac + 1 + need.spare
                    for need in _needs(wider, bounds)
                    if need.bits < fp.WIDE
                ),
                default=n,
            )
            n = max(n + 1, needed)
    return None


def declare(
    model: ir.Model,
    *,
    comparison_bits: int | str = 32,
    fractional_bits: int = 16,
    calibration: Mapping[str, Any] | None = None,
    publish_error_bound: bool = True,
) -> ir.Model:
    """Fix what the model says in public about its numbers, after checking that it is true.

    Parameters
    ----------
    model : Model
        The model.
    comparison_bits : int or "auto"
        n of every comparison. "auto" takes the smallest multiple of 4 from 24 to 48 that holds, which
        publishes a coarse norm of the weights.
    fractional_bits : int
        f of every wire.
    calibration : mapping of ndarray, optional
        Rows of the model owner's own data to take ranges from instead of proving them. A later input
        that goes further gives a wrong result without a word, so every report says "calibrated".
    publish_error_bound : bool
        Put the error bound, rounded up to a power of two, into the architecture.

    Returns
    -------
    Model
        The same model with its declared precision.

    Raises
    ------
    PrecisionError
        A layer's values may not fit.
    """
    if comparison_bits != "auto" and type(comparison_bits) is not int:
        raise PrecisionError(f"comparison_bits is a number or 'auto', not {comparison_bits!r}")
    basis = "interval" if calibration is None else "calibrated"
    for n in AUTO_BITS if isinstance(comparison_bits, str) else (comparison_bits,):
        precision = ir.Precision(fractional_bits, n, basis)
        precision.check()
        model = tables.tabulated(model.with_precision(precision))
        try:
            bounds = analyse(model, calibration)
            check_ranges(model, bounds)
            break
        except PrecisionError as e:
            misfit = e
    else:
        fitting = _fitting_bits(model, calibration) if misfit.hint == NARROWER else None
        if fitting is not None:
            misfit.hint = f"comparison_bits={fitting} would fit; or {NARROWER}"
        raise misfit
    if not publish_error_bound:
        return model
    program = compile_program(model.architecture)
    worst = max(2.0**-fp.WIDE, *(float(bounds[s.index].error.max()) for s, _ in program.reveals()))
    return model.with_precision(
        dataclasses.replace(precision, error_bound=2.0 ** math.ceil(math.log2(worst)))
    )


def check_inputs(
    architecture: ir.Architecture, inputs: Mapping[str, Any], only: set[str] | None = None
) -> dict[str, Array]:
    """Check inputs against their declaration; nothing has been sent when this raises.

    Parameters
    ----------
    architecture : Architecture
        Names, shapes and ranges.
    inputs : mapping of array_like
        Real or integer arrays shaped (batch, *shape); a missing batch axis is taken as one sample.
    only : set of str, optional
        The inputs that are wanted here; all of them by default.

    Returns
    -------
    dict of ndarray
        float64, C-contiguous, batch first, one batch size.

    Raises
    ------
    InputError
        Unknown or missing name, wrong shape or dtype, NaN or infinity, out of range, unequal batches.
    """
    declared = {i.name: i for i in architecture.inputs if only is None or i.name in only}
    for name in inputs:
        if name not in declared:
            raise InputError(f"there is no input {name!r} here", hint=f"known: {', '.join(sorted(declared))}")
    checked: dict[str, Array] = {}
    for name, source in declared.items():
        if name not in inputs:
            raise InputError(f"input {name!r} is missing")
        try:
            raw = np.asarray(inputs[name])
        except ValueError:
            raise InputError(f"input {name!r} is no array: its rows differ in length") from None
        if raw.dtype.kind not in "fiub":
            raise InputError(f"input {name!r} has dtype {raw.dtype}, not real numbers")
        if raw.shape == source.shape:
            raw = raw[None]
        if raw.shape[1:] != source.shape or raw.ndim != len(source.shape) + 1:
            raise InputError(f"input {name!r} has shape {raw.shape}, not (batch, *{source.shape})")
        x = np.ascontiguousarray(raw, dtype=np.float64)
        if not np.isfinite(x).all():
            raise InputError(f"input {name!r} holds NaN or infinity")
        outside = int(np.count_nonzero((x < source.low) | (x > source.high)))
        if outside:
            raise InputError(
                f"input {name!r}: {outside} of {x.size} values lie outside the declared range "
                f"[{source.low:g}, {source.high:g}]",
                hint="clip or rescale as the model's card says",
            )
        checked[name] = x
    sizes = {name: len(x) for name, x in checked.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"inputs have different batch sizes: {sizes}")
    return checked


def _bilinear(
    step: fp.Step, op: fp.Bilinear, x: Bound, params: dict[str, Array], program: fp.Program
) -> Bound:
    weight, bias = params["weight"], params["bias"]
    f_in = program.steps[step.inputs[0]].type.frac
    for what, array, bits in (("weight", weight, op.weight_frac), ("bias", bias, f_in + op.weight_frac)):
        if np.abs(array).max(initial=0) >= 2.0 ** (62 - bits):
            raise PrecisionError(f"layer {step.node!r}: a {what} is too large for fixed point")
    centre, radius = (x.low + x.high) / 2, (x.high - x.low) / 2
    rank = centre.ndim if not isinstance(op.op, ir.Conv2d) else 4
    b = reference.along(bias, reference.bias_axis(op.op, rank), rank)
    middle = reference.linear_map(op.op, centre, weight) + b
    spread = reference.linear_map(op.op, radius, np.abs(weight))
    reach = np.maximum(np.abs(x.low), np.abs(x.high)) + x.error
    half = 2.0 ** -(op.weight_frac + 1)
    error = (
        reference.linear_map(op.op, x.error, np.abs(weight))  # what came in
        + reference.linear_map(op.op, reach, np.full_like(weight, half))  # weights were rounded
        + 2.0 ** -(f_in + op.weight_frac + 1)  # so was the bias
        + (TRUNCATING_OPENING_ULP + ENCRYPTED_ULP) * 2.0**-step.type.frac
    )
    return Bound(middle - spread, middle + spread, error)


def _claimed(claim: fp.Claim, bound: Bound, bounds: list[Bound]) -> Bound:
    """What is known of a value without following its steps, where that says more."""
    error = bound.error
    if claim.source >= 0:
        known = claim.gain * float(bounds[claim.source].error.max()) + claim.own
        error = np.minimum(error, known)
    low, high = np.clip(bound.low, claim.low, claim.high), np.clip(bound.high, claim.low, claim.high)
    return Bound(low, high, error)


def _local(step: fp.Step, op: fp.Operation, xs: list[Bound], scale: float) -> Bound:
    x = xs[0]
    match op:
        case fp.SumPool(pool):
            low, high, error = (
                reference.windows(v, pool.kernel, pool.stride, pool.padding).sum(axis=(4, 5)) * scale
                for v in (x.low, x.high, x.error)
            )
        case fp.Times():
            c = np.array(op.values, dtype=np.float64).reshape(op.shape) * scale
            low, high = np.minimum(x.low * c, x.high * c), np.maximum(x.low * c, x.high * c)
            reach = np.maximum(np.abs(x.low), np.abs(x.high)) + x.error
            rounded = np.full_like(c, 0.0 if op.exact else scale / 2)
            error = x.error * np.abs(c) + reach * rounded
        case fp.Plus():
            low, high, error = x.low + xs[1].low, x.high + xs[1].high, x.error + xs[1].error
        case fp.Join(axis):
            low, high, error = (
                np.concatenate([getattr(v, k) for v in xs], axis=axis) for k in ("low", "high", "error")
            )
        case fp.Shape(to):
            # a step that names fewer fractional bits than it was given divides
            low, high, error = (v.reshape(len(v), *to) * scale for v in (x.low, x.high, x.error))
        case fp.Permute(order):
            low, high, error = (v.transpose(0, *order) for v in (x.low, x.high, x.error))
        case fp.Pick(axis, indices):
            low, high, error = (reference.pick(v, axis, indices) for v in (x.low, x.high, x.error))
        case fp.Total(axis):
            low, high, error = (v.sum(axis=axis) for v in (x.low, x.high, x.error))
        case _:
            raise TypeError(type(op).__name__)
    return Bound(low, high, error)


def _observe(
    step: fp.Step,
    op: fp.Operation,
    rows: dict[str, Array],
    xs: list[Array],
    model: ir.Model,
    scale: float,
) -> Array:
    match op:
        case fp.Source(name):
            return rows[name]
        case fp.Bilinear(linear):
            return reference.apply(linear, model.parameters[step.node], list(xs))
        case fp.Rectify():
            return np.asarray(np.maximum(xs[0], 0))
        case fp.Extend() | fp.Truncate() | fp.Reveal():
            return xs[0]
        case _ if isinstance(op, bounds_of.CURVED):
            return bounds_of.value(step, op, xs, scale)
        case _:
            point = [Bound(x, x, np.zeros_like(x)) for x in xs]
            return _local(step, op, point, scale).low
