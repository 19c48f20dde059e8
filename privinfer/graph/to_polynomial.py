"""From a model with ReLUs, sigmoids and their like to one with polynomials, for homomorphic schemes.

Public afterwards are the degree and the range of each polynomial, and its coefficients, which follow from
these two and the function that was there. Ends of ranges are powers of two. Everything that was learnt stays
in the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, InputError, ModelUnsupported, PrecisionError
from privinfer.graph import activations, decisions, finetune, ir, minimax, ranges, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.operators import MAX_DEGREE

Array = npt.NDArray[np.float64]
Span = tuple[float, float]

MARGIN = 1.25  # of ranges over what was seen
TIGHT = 1.05  # what is seen later may come this close to an end
FIRST_ROWS = 2048  # that first ranges are taken from
CHUNK = 512
ROUNDS = 3  # of tuning again with wider ranges
LEAST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Activation:
    """What became of one activation.

    Attributes
    ----------
    node : str
        Its node.
    function : str
        What it was.
    degree : int
        Of the polynomial.
    low, high : float
        Range it was fitted on, public.
    error : float
        Largest difference from the function on that range.
    seen : tuple of float
        Least and largest value that all given rows put in; private.
    proven : bool
        Intervals prove that no input in its declared range leads out of [low, high]. Else rows were tried.
    """

    node: str
    function: str
    degree: int
    low: float
    high: float
    error: float
    seen: Span
    proven: bool

    def __str__(self) -> str:
        basis = "proven" if self.proven else f"calibrated, seen [{self.seen[0]:.3g}, {self.seen[1]:.3g}]"
        return (
            f"{self.node} ({self.function}): degree {self.degree} on [{self.low:g}, {self.high:g}], "
            f"within {self.error:.2g}, {basis}"
        )


@dataclass(frozen=True, slots=True)
class PolynomialReport:
    """How well a polynomial model does; it tells of data and weights, and stays with the model owner.

    Attributes
    ----------
    activations : tuple of Activation
        In the order of the graph.
    trained, held_out : int
        Rows the weights were tuned on, and rows that everything below was measured on.
    before, untuned, after : float or None
        Share of held-out rows with the right label: the original model, the polynomial one before tuning,
        and after it. None without labels.
    agreement_untuned, agreement : float
        Share of held-out rows on which the polynomial model decides as the original one does.
    difference : float
        Largest absolute difference of any output from the original model's.
    outside : int
        Held-out rows that left a range which the other rows had given. Ranges were then widened.
    basis : str
        As in :class:`privinfer.graph.ir.Precision`.
    """

    activations: tuple[Activation, ...]
    trained: int
    held_out: int
    before: float | None
    untuned: float | None
    after: float | None
    agreement_untuned: float
    agreement: float
    difference: float
    outside: int
    basis: str

    def __str__(self) -> str:
        lines = [str(a) for a in self.activations] or ["no activation was replaced"]
        lines.append(f"tuned on {self.trained} rows, measured on {self.held_out} others; ranges {self.basis}")
        if self.before is not None:
            lines.append(
                f"accuracy {self.before:.4f} before, {self.untuned:.4f} untuned, {self.after:.4f} after"
            )
        lines.append(
            f"decides as before on {self.agreement:.4f} of rows, untuned {self.agreement_untuned:.4f}"
        )
        lines.append(
            f"outputs differ by at most {self.difference:.3g}; {self.outside} rows left their ranges"
        )
        return "\n".join(lines)


def to_polynomial(
    model: ir.Model,
    calibration: Mapping[str, Any],
    *,
    labels: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
    degree: int = 3,
    error: float | None = None,
    epochs: int = 20,
    held_out: float = 0.2,
    seed: int = 0,
    rate: float = 1e-3,
    average_pools: bool = False,
) -> tuple[ir.Model, PolynomialReport]:
    """Make a model whose activations are polynomials, and tune it to answer as before.

    Every activation (ReLU, sigmoid, GELU, a clip, one put together of several nodes) becomes the polynomial
    that comes closest to it on the range its values were seen in, with a margin and ends that are powers of
    two. The weights are then tuned with torch on the rows of `calibration`: towards the original model's
    outputs, towards labels where there are some, and away from the ends of ranges. It is the tuned weights
    that make up for what the polynomials are off by, so give rows like those to come, and many.

    Parameters
    ----------
    model : Model
        Loaded by :func:`privinfer.from_onnx` or :func:`privinfer.from_torch`.
    calibration : mapping of ndarray
        Rows of the model owner's own data, batch first.
    labels : array_like, optional
        Class of each row, as an integer: 0 or 1 where the output is one number. A mapping by output where
        there are several.
    degree : int
        Of every polynomial, 1 to 31; less where the leading coefficients are zero.
    error : float, optional
        Instead of a degree: each polynomial gets the least degree that comes this close to its function.
    epochs : int
        How often the tuning sees each row. With 0 nothing is tuned, and torch is not needed.
    held_out : float
        Share of rows that are kept out of the tuning, to measure with.
    seed : int
        Of which rows are held out, and of the order in which others are seen.
    rate : float
        Largest step of the tuning (Adam).
    average_pools : bool
        Whether maxima become means. This is another function, and tuning has to make up for it.

    Returns
    -------
    model, report
        The polynomial model, with ranges declared as proven where intervals prove all of them, else as
        calibrated on all rows; and a :class:`PolynomialReport`, for the model owner's eyes.

    Raises
    ------
    ModelUnsupported
        A node has no polynomial (its name, its range and the error reached are told), or tuning diverged.
    PrecisionError
        Values do not fit fixed point.
    InputError
        Rows or labels do not fit the model.
    ConfigError
        An option is not possible, or torch is not installed.
    """
    if not isinstance(model, ir.Model):
        raise ConfigError("the model is not loaded", hint="privinfer.from_onnx or privinfer.from_torch")
    _check_options(degree, error, epochs, held_out, rate)
    rows = ranges.check_inputs(model.architecture, calibration)
    count = len(next(iter(rows.values())))
    kept_out = max(1, round(held_out * count))
    if count < LEAST_ROWS or kept_out >= count:
        raise InputError(f"{count} rows are too few to tune on and to measure with")
    architecture = dataclasses.replace(model.architecture, tables=())
    if average_pools:
        architecture = activations.averaged(architecture)
    curves = activations.find(architecture)
    activations.check_kept(architecture, curves)
    classes = decisions.classes(model, labels, count)

    order = finetune.shuffled(count, seed, 0)
    train, test = order[kept_out:], order[:kept_out]
    targets = _outputs(model, rows)
    work = _Work(architecture, model.parameters, curves, degree, error)
    work.first(_taken(rows, train[:FIRST_ROWS]))
    untuned = _outputs(work.model(), _taken(rows, test))
    task = finetune.Task(
        _taken(rows, train),
        _taken(targets, train),
        {k: v[train] for k, v in classes.items()},
        frozenset(k for k in classes if not decisions.probability(model.architecture, k)),
    )
    for turn in range(ROUNDS):
        share = epochs if turn == 0 else math.ceil(epochs / 4)
        work.parameters = finetune.tune(
            *work.pair(), task, epochs=share, seed=seed + turn, rate=rate if turn == 0 else rate / 4
        )
        if not work.widen(task.inputs):
            break
    work.widen(task.inputs)
    outside = work.outside(_taken(rows, test))
    work.widen(rows)

    made = _declared(work.model(), model, _taken(rows, work.telling(rows)))
    answers, wanted = _outputs(made, _taken(rows, test)), _taken(targets, test)
    right = {k: v[test] for k, v in classes.items()}
    report = PolynomialReport(
        activations=work.told(made, rows),
        trained=len(train),
        held_out=len(test),
        before=decisions.accuracy(model, wanted, right),
        untuned=decisions.accuracy(model, untuned, right),
        after=decisions.accuracy(model, answers, right),
        agreement_untuned=decisions.agreement(model, untuned, wanted),
        agreement=decisions.agreement(model, answers, wanted),
        difference=max(float(np.abs(answers[k] - wanted[k]).max()) for k in wanted),
        outside=outside,
        basis=made.architecture.precision.basis,
    )
    return made, report


class _Work:
    """The polynomial model while it is being made."""

    def __init__(
        self,
        architecture: ir.Architecture,
        parameters: ir.Parameters,
        curves: Mapping[str, activations.Curve],
        degree: int,
        error: float | None,
    ) -> None:
        self.architecture, self.parameters = architecture, parameters
        self.curves, self.degree, self.error = curves, degree, error
        self.fitted: dict[str, tuple[ir.Polynomial, float]] = {}

    def fit(self, name: str, low: float, high: float) -> None:
        """Put a polynomial on a range in the place of one curve."""
        curve = self.curves[name]
        if self.error is None:
            found = minimax.fit(curve, low, high, self.degree)
        else:
            found = minimax.smallest(curve, low, high, self.error)
            if found[1] > self.error:
                raise ModelUnsupported(
                    f"node {name!r} ({curve.name}): no polynomial of degree {MAX_DEGREE} or less comes "
                    f"within {self.error:g} on [{low:g}, {high:g}]; the best one comes within {found[1]:.2g}",
                    hint="allow a larger error, or scale the layer before, so that its values are smaller",
                )
        self.fitted[name] = ir.Polynomial(low, high, found[0]), found[1]

    def first(self, rows: Mapping[str, Array]) -> None:
        """Fit one curve after the other, each on what the polynomials before it let through."""
        values: dict[str, Array] = dict(rows)
        inside = {n.name for c in self.curves.values() for n in c.nodes}
        for node in self.architecture.nodes:
            if node.name in self.curves:
                x = values[self.curves[node.name].source]
                self.fit(node.name, *activations.around(float(x.min()), float(x.max()), MARGIN))
                values[node.name] = reference.polynomial(self.fitted[node.name][0], x)
            elif node.name not in inside:
                xs = [values[i] for i in node.inputs]
                values[node.name] = reference.apply(node.op, self.parameters.get(node.name, {}), xs)

    def pair(self) -> tuple[ir.Architecture, ir.Parameters]:
        """Architecture and parameters with the polynomials as they are now."""
        by = {name: polynomial for name, (polynomial, _) in self.fitted.items()}
        return activations.replaced(self.architecture, self.parameters, by, self.curves)

    def model(self) -> ir.Model:
        """The same as a model."""
        return ir.Model(*self.pair())

    def seen(self, rows: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        """Least and largest value of each row that goes into each polynomial."""
        found: dict[str, list[tuple[Array, Array]]] = {name: [] for name in self.curves}
        model = self.model()
        for part in _chunks(rows):
            values: dict[str, Array] = {}
            reference.run(model, part, values.__setitem__)
            for name, curve in self.curves.items():
                flat = values[curve.source].reshape(len(values[curve.source]), -1)
                found[name].append((flat.min(axis=1), flat.max(axis=1)))
        return {
            name: (np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts]))
            for name, parts in found.items()
        }

    def widen(self, rows: Mapping[str, Array]) -> bool:
        """Fit anew what comes close to the end of its range, until nothing does; whether anything did."""
        changed = False
        while True:
            near = {}
            for name, (low, high) in self.seen(rows).items():
                op = self.fitted[name][0]
                least, most = float(low.min()), float(high.max())
                if TIGHT * least < op.low or TIGHT * most > op.high:
                    a, b = activations.around(least, most, MARGIN)
                    near[name] = min(a, op.low), max(b, op.high)
            if not near:
                return changed
            # only the first: what comes behind it changes with it
            name = next(n.name for n in self.architecture.nodes if n.name in near)
            if not all(map(math.isfinite, near[name])) or near[name][1] > 2.0**40:
                raise ModelUnsupported(
                    f"node {name!r}: its values grow without end",
                    hint="tune on more rows or for more epochs, or allow a higher degree",
                )
            self.fit(name, *near[name])
            changed = True

    def outside(self, rows: Mapping[str, Array]) -> int:
        """How many rows leave some range."""
        count = len(next(iter(rows.values())))
        out = np.zeros(count, dtype=bool)
        for name, (low, high) in self.seen(rows).items():
            op = self.fitted[name][0]
            out |= (low < op.low) | (high > op.high)
        return int(out.sum())

    def telling(self, rows: Mapping[str, Array]) -> finetune.Order:
        """The rows that reach furthest in each polynomial, and as many others as an analysis can hold."""
        count = len(next(iter(rows.values())))
        which = set(range(min(count, CHUNK)))
        for low, high in self.seen(rows).values():
            which |= {int(low.argmin()), int(high.argmax())}
        return np.array(sorted(which))

    def told(self, made: ir.Model, rows: Mapping[str, Array]) -> tuple[Activation, ...]:
        """What the report says of each activation."""
        proven, seen = _proven(made), self.seen(rows)
        return tuple(
            Activation(
                node=name,
                function=curve.name,
                degree=self.fitted[name][0].degree,
                low=self.fitted[name][0].low,
                high=self.fitted[name][0].high,
                error=self.fitted[name][1],
                seen=(float(seen[name][0].min()), float(seen[name][1].max())),
                proven=name in proven,
            )
            for name, curve in self.curves.items()
        )


# -- options, rows, labels ---------------------------------------------------------------------------


def _check_options(degree: int, error: float | None, epochs: int, held_out: float, rate: float) -> None:
    if type(degree) is not int or not 1 <= degree <= MAX_DEGREE:
        raise ConfigError(f"degree is a number from 1 to {MAX_DEGREE}, not {degree!r}")
    if error is not None and not 0 < error < math.inf:
        raise ConfigError(f"the error has to be positive, not {error!r}")
    if type(epochs) is not int or epochs < 0:
        raise ConfigError(f"epochs is a number from 0 on, not {epochs!r}")
    if not (0 < held_out < 1 and 0 < rate < math.inf):
        raise ConfigError("held_out has to lie between 0 and 1, and rate above 0")


def _taken(rows: Mapping[str, Array], which: finetune.Order) -> dict[str, Array]:
    return {k: v[which] for k, v in rows.items()}


def _chunks(rows: Mapping[str, Array]) -> list[dict[str, Array]]:
    count = len(next(iter(rows.values())))
    return [{k: v[at : at + CHUNK] for k, v in rows.items()} for at in range(0, count, CHUNK)]


def _outputs(model: ir.Model, rows: Mapping[str, Array]) -> dict[str, Array]:
    parts = [reference.run(model, part) for part in _chunks(rows)]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


# -- what is declared --------------------------------------------------------------------------------


def _declared(made: ir.Model, like: ir.Model, rows: Mapping[str, Array]) -> ir.Model:
    """Bits as the original model has them, or more where these are too few; ranges proven, or calibrated."""
    old = like.architecture.precision
    publish = old.error_bound is not None
    tries: list[tuple[int | str, Mapping[str, Array] | None]] = [
        (bits, basis) for bits in (old.comparison_bits, "auto") for basis in (None, rows)
    ]
    for bits, basis in tries:
        try:
            return ranges.declare(
                made,
                comparison_bits=bits,
                fractional_bits=old.fractional_bits,
                calibration=basis,
                publish_error_bound=publish,
            )
        except PrecisionError as e:
            last = e
    raise last


def _proven(made: ir.Model) -> set[str]:
    """Polynomials whose range intervals prove, as they do of all polynomials before them."""
    bounds = ranges.analyse(made)
    program = compile_program(made.architecture)
    entry: dict[str, int] = {}
    polynomials = {n.name for n in made.architecture.nodes if isinstance(n.op, ir.Polynomial)}
    for step in program.steps:
        if step.node in polynomials and step.node not in entry and ranges.enters(step.operation):
            entry[step.node] = step.inputs[0]
    good: set[str] = set()
    sound = {i.name for i in made.architecture.inputs}
    for node in made.architecture.nodes:
        if not all(i in sound for i in node.inputs):
            continue
        if isinstance(node.op, ir.Polynomial):
            x = bounds[entry[node.name]]
            if float(x.low.min()) < node.op.low or float(x.high.max()) > node.op.high:
                continue
            good.add(node.name)
        sound.add(node.name)
    return good
