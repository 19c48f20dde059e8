"""Run a plan on ciphertexts: the model owner's part of an inference.

:class:`Evaluation` is a plan with a model's weights encoded for it, once a session. :meth:`Evaluation.run`
is a generator: it yields what the key holders have to refresh and is sent the result back, so it knows no
network. Whatever leaves it, a refresh or an output, has a fresh encryption of zero added, flooded where it is
to be opened: the quotient of a ciphertext and what it was computed from would be the weights.

What happens depends on the plan alone, not on weights or on anything that was received.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privinfer.backends.ckks import linear, polynomial
from privinfer.backends.ckks.affine import Circuit, Matrix, Segment, trace
from privinfer.backends.ckks.bookkeeping import Bookkeeping, Declared
from privinfer.backends.ckks.cipher import Arithmetic, Ciphertext
from privinfer.backends.ckks.diagonals import diagonal_values
from privinfer.backends.ckks.layout import Values
from privinfer.backends.ckks.linear import Prepared
from privinfer.backends.ckks.plan import Activate, Linear, Opened, Plan, Product, Refresh, Refreshed, Source
from privinfer.errors import ConfigError, InputError, PrecisionError
from privinfer.graph import ir
from privinfer.protocols.ckks import noise, smudging
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.parameters import SCALE
from privinfer.protocols.randomness import U64, derive

__all__ = ["Evaluation", "EvaluationKeys", "Outlook", "RefreshRequest", "Rows"]

#: Ciphertexts of a value, by row of the batch.
Rows = list[list[Ciphertext]]

POWER_ITERATIONS = 40


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EvaluationKeys:
    """What the key holders made for the evaluator; all public.

    Attributes
    ----------
    public : PublicKey
        The joint key.
    relinearisation : ndarray of uint64, shape (D, 2, K, N), or None
        Of the plan's parameters; None where nothing is multiplied.
    galois : dict of int to ndarray
        By element, of the plan's linear parameters.
    """

    public: PublicKey
    relinearisation: U64 | None
    galois: Mapping[int, U64]


@dataclass(frozen=True, slots=True, eq=False)
class RefreshRequest:
    """A round: what has to come back with more limbs, with its scale and message as they are.

    Attributes
    ----------
    number : int
        Of the round, from 0.
    targets : tuple of Refreshed
        One a ciphertext: which value it is of, from how many limbs to how many.
    ciphertexts : tuple of Ciphertext
        At ``span.low`` limbs, hidden; value by value, each row by row. The answer has the same order.
    """

    number: int
    targets: tuple[Refreshed, ...]
    ciphertexts: tuple[Ciphertext, ...]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is declared of an output, before anybody computes it.

    Attributes
    ----------
    name : str
        Of the output.
    noise_std : float
        Standard deviation of a coefficient's error before smudging.
    smudging_bits : int
        b: every party's smudging is uniform in +-2^b.
    slot_std : float
        Standard deviation of an opened number's error, smudging of all parties included.
    """

    name: str
    noise_std: float
    smudging_bits: int
    slot_std: float

    @property
    def flooding_bits(self) -> float:
        """How far one party's smudging stands above the noise that it hides."""
        return smudging.flooding_bits(self.noise_std, self.smudging_bits)

    def describe(self) -> str:
        """A line for the report."""
        sigma = math.log2(smudging.Smudging(self.smudging_bits).std)
        return (
            f"{self.name}: sigma = 2^{sigma:.1f}, {self.flooding_bits:.1f} bits of flooding, "
            f"{-math.log2(self.slot_std):.1f} bits of precision left"
        )


class Evaluation:
    """A plan ready to run.

    Parameters
    ----------
    plan : Plan
        What to compute.
    model : Model
        Its weights.
    keys : EvaluationKeys
        Of the session.

    Raises
    ------
    ConfigError
        The plan is for another architecture, or a key is missing.
    """

    __slots__ = (
        "_facts",
        "_last",
        "arithmetic",
        "keys",
        "model",
        "plan",
        "prepared",
        "rotating",
        "scales",
    )

    def __init__(self, plan: Plan, model: ir.Model, keys: EvaluationKeys) -> None:
        if model.architecture.digest() != plan.architecture:
            raise ConfigError("the plan was made for another architecture")
        if plan.relinearises and keys.relinearisation is None:
            raise ConfigError("the plan multiplies ciphertexts, and there is no relinearisation key")
        missing = set(plan.galois_elements) - set(keys.galois)
        if missing:
            raise ConfigError(f"{len(missing)} Galois keys of the plan are missing")
        self.plan, self.model, self.keys = plan, model, keys
        self.arithmetic = Arithmetic(plan.parameters, keys.relinearisation, {})
        #: Galois keys have as many digits as linear steps have limbs, so these have a smaller modulus.
        self.rotating = Arithmetic(plan.linear_parameters, None, keys.galois)
        self.scales = _scales(plan)
        self.prepared: dict[str, Prepared] = {}
        self._facts: dict[str, Facts] = {}
        self._last = _last_uses(plan)

    def prepare(self) -> None:
        """Encode all diagonals and biases; once a session."""
        circuit = trace(self.model.architecture, self.model.parameters)
        for step in self.plan.steps:
            if isinstance(step, Linear):
                self.prepared[step.name] = self._encode(step, circuit)
                self._facts[step.name] = _facts(circuit.segments[step.name], step.inputs)

    def _encode(self, step: Linear, circuit: Circuit) -> Prepared:
        value, steps = circuit.segments[step.name].value, self.plan.diagonals[step.name]
        layout = self.plan.layouts[step.name]
        biases = [None] * layout.ciphertexts if value.bias is None else list(layout.pack(value.bias))
        try:
            return linear.prepare(
                self.rotating,
                steps,
                diagonal_values([value.parts[k] for k in step.inputs], steps),
                biases,
                limbs=step.level,
                scales=[self.scales[step.inputs[k]] for k, _ in steps.inputs],
                scale=self.scales[step.name],
            )
        except ValueError:  # a coefficient does not fit 62 bits, 12 more than the scale
            raise PrecisionError(
                f"node {step.node!r}: a weight or a bias is too large to be encoded",
                hint="smaller weights: let the next layer, or batch normalisation, have the factor",
            ) from None

    # Running

    def run(
        self, inputs: Mapping[str, Sequence[Sequence[Ciphertext]]]
    ) -> Generator[RefreshRequest, Sequence[Ciphertext], dict[str, Rows]]:
        """Compute all outputs of a batch; see :meth:`run_with_pauses`."""
        work = self.run_with_pauses(inputs)
        answer: Sequence[Ciphertext] | None = None
        try:
            while True:
                request = work.send(answer)
                answer = (yield request) if request is not None else None
        except StopIteration as done:
            outputs: dict[str, Rows] = done.value
            return outputs

    def run_with_pauses(
        self, inputs: Mapping[str, Sequence[Sequence[Ciphertext]]]
    ) -> Generator[RefreshRequest | None, Sequence[Ciphertext] | None, dict[str, Rows]]:
        """Compute all outputs of a batch.

        Parameters
        ----------
        inputs : mapping of str to sequence of sequence of Ciphertext
            By input, row by row the ciphertexts of its layout, at the plan's level or above.

        Yields
        ------
        RefreshRequest or None
            One request a round, which wants the refreshed ciphertexts back; None after each row of a step,
            which wants nothing, so that a caller can say that it is at work.

        Returns
        -------
        dict of str to list of list of Ciphertext
            By output, row by row, hidden and flooded, for the key holders to switch to the receiver's key.
        """
        if len(self.prepared) < len(self.plan.diagonals):
            self.prepare()
        missing = [s.name for s in self.plan.inputs if s.name not in inputs]
        if missing or len({len(inputs[s.name]) for s in self.plan.inputs}) != 1:
            raise InputError(f"inputs are missing or have different numbers of rows: {missing}")
        values: dict[str, Rows] = {}
        outputs: dict[str, Rows] = {}
        for at, step in enumerate(self.plan.steps):
            match step:
                case Source():
                    values[step.name] = self._given(step, inputs)
                case Linear() | Activate() | Product():
                    made: Rows = []
                    for row in self._rows(step, values):
                        made.append(row)
                        yield None
                    values[step.name] = made
                case Refresh():
                    request = self._request(step, values)
                    answer = yield request
                    self._refreshed(request, answer or (), values)
                case Opened():
                    outputs[step.name] = [[self._open(step, x) for x in row] for row in values[step.value]]
            for name in self._last.get(at, ()):
                values.pop(name, None)
        return outputs

    def _given(self, step: Source, inputs: Mapping[str, Sequence[Sequence[Ciphertext]]]) -> Rows:
        rows = []
        for row in inputs[step.name]:
            if len(row) != step.ciphertexts:
                raise InputError(f"input {step.name!r}: {len(row)} ciphertexts a row, not {step.ciphertexts}")
            if any(x.limbs < step.level or x.scale != step.scale for x in row):
                raise InputError(f"input {step.name!r} has another level or scale than planned")
            rows.append([self.arithmetic.drop(x, step.level) for x in row])
        return rows

    def _rows(
        self, step: Linear | Activate | Product, values: Mapping[str, Rows]
    ) -> Iterator[list[Ciphertext]]:
        """What a step makes of each row, one after the other."""
        match step:
            case Linear():
                for parts in zip(*(values[k] for k in step.inputs), strict=True):
                    yield self._linear(step, [x for part in parts for x in part])
            case Activate():
                for row in values[step.argument]:
                    yield [self._activate(step, x) for x in row]
            case Product():
                for pair in zip(values[step.first], values[step.second], strict=True):
                    yield [self._product(step, a, b) for a, b in zip(*pair, strict=True)]

    def _linear(self, step: Linear, given: Sequence[Ciphertext]) -> list[Ciphertext]:
        low = [self.rotating.drop(x, step.level) for x in given]
        return linear.product(self.rotating, low, self.prepared[step.name])

    def _activate(self, step: Activate, x: Ciphertext) -> Ciphertext:
        low = self.arithmetic.drop(x, step.level)
        return polynomial.evaluate(self.arithmetic, low, step.coefficients, self.scales[step.name])

    def _product(self, step: Product, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        first, second = (self.arithmetic.drop(x, step.level) for x in (a, b))
        return self.arithmetic.rescale(self.arithmetic.multiply(first, second), self.scales[step.name])

    def _request(self, step: Refresh, values: Mapping[str, Rows]) -> RefreshRequest:
        ckks = self.arithmetic
        targets, ciphertexts = [], []
        for target in step.values:
            for row in values[target.name]:
                for x in row:
                    targets.append(target)
                    ciphertexts.append(ckks.hide(ckks.drop(x, target.span.low), self.keys.public))
        return RefreshRequest(step.number, tuple(targets), tuple(ciphertexts))

    def _refreshed(
        self, request: RefreshRequest, answer: Sequence[Ciphertext], values: dict[str, Rows]
    ) -> None:
        if len(answer) != len(request.targets):
            raise PrecisionError(f"{len(answer)} refreshed ciphertexts instead of {len(request.targets)}")
        fresh = iter(answer)
        for name in dict.fromkeys(t.name for t in request.targets):
            values[name] = [[next(fresh) for _ in row] for row in values[name]]
        for target, sent, back in zip(request.targets, request.ciphertexts, answer, strict=True):
            if back.limbs != target.span.high or back.scale != sent.scale:
                raise PrecisionError(f"value {target.name!r} came back with another level or scale")

    def _open(self, step: Opened, x: Ciphertext) -> Ciphertext:
        hidden = self.arithmetic.hide(self.arithmetic.drop(x, step.level), self.keys.public, step.smudging)
        return Ciphertext(hidden.data, step.scale)  # a product's own scale is off by less than 2^-24 of it

    # What is declared

    def outlook(self, inputs: Mapping[str, float] | None = None) -> list[Outlook]:
        """Errors of all outputs, from what the operations declare.

        Parameters
        ----------
        inputs : mapping of str to float, optional
            Standard deviation of a coefficient's error of inputs that are not fresh encryptions under the
            joint key, such as re-keyed fragments.
        """
        declared = self.declared(inputs)
        p, found = self.plan.parameters, []
        for step in self.plan.outputs:
            value = declared[step.value]
            drift = value.size * abs(self.scales[step.value] / step.scale - 1)
            std = math.hypot(value.std, noise.slot_std(p, noise.fresh(p, self.plan.holders)))
            parties = self.plan.threshold + 1  # the key holders' and the evaluator's own
            opened = smudging.slot_error(p, step.smudging.bits, parties, step.scale)
            coefficient = std / noise.slot_std(p, 1.0, step.scale)
            found.append(Outlook(step.name, coefficient, step.smudging.bits, math.hypot(std, opened) + drift))
        return found

    def declared(self, inputs: Mapping[str, float] | None = None) -> dict[str, Declared]:
        """What is declared of every value, as it is once made and refreshed; arguments as of `outlook`."""
        if len(self.prepared) < len(self.plan.diagonals):
            self.prepare()
        plan, books = self.plan, Bookkeeping(self.plan.parameters, self.plan.holders)
        fresh = noise.fresh(plan.parameters, plan.holders)
        rerandomised = books.slot(fresh, SCALE)
        bounds = {i.name: max(abs(i.low), abs(i.high)) for i in self.model.architecture.inputs}
        known: dict[str, Declared] = {}
        for step in plan.steps:
            match step:
                case Source():
                    std = (inputs or {}).get(step.name, fresh)
                    known[step.name] = books.fresh(bounds[step.name], step.level, step.scale, std)
                case Linear():
                    d, facts = plan.diagonals[step.name], self._facts[step.name]
                    given = [books.drop(known[k], step.level) for k in step.inputs]
                    reach = sum(r * x.size for r, x in zip(facts.reaches, given, strict=True))
                    known[step.name] = books.linear(
                        given,
                        facts.norms,
                        size=min(facts.bound, reach + facts.bias),
                        diagonals=int(np.bincount(d.output).max()),
                        giants=int(np.bincount(d.output[_starts(d.output, d.giant)]).max()),
                        folds=len(d.folds),
                        scale=self.scales[step.name],
                    )
                case Activate():
                    t = books.drop(known[step.argument], step.level)
                    known[step.name] = polynomial.evaluate(
                        books, t, step.coefficients, self.scales[step.name]
                    )
                case Product():
                    a, b = (books.drop(known[k], step.level) for k in (step.first, step.second))
                    made = books.relinearise(books.product(a, b))
                    known[step.name] = books.rescale(made, self.scales[step.name])
                case Refresh():
                    for v in step.values:
                        x = books.refresh(known[v.name], v.span.high, v.span.holders)
                        known[v.name] = Declared(x.size, math.hypot(x.std, rerandomised), x.limbs, x.scale)
        return known


@dataclass(frozen=True, slots=True)
class Facts:
    """What errors of a linear step depend on; secret, like the weights they come from.

    Attributes
    ----------
    norms, reaches : tuple of float
        Spectral norm and largest sum of magnitudes in a row, of each source's matrix.
    bias, bound : float
        Largest magnitude of the bias, and of the result by what is public.
    """

    norms: tuple[float, ...]
    reaches: tuple[float, ...]
    bias: float
    bound: float


def _facts(segment: Segment, inputs: Sequence[str]) -> Facts:
    parts = [segment.value.parts[k] for k in inputs]
    reaches = [
        float(np.bincount(m.rows, weights=np.abs(m.values)).max(initial=0))
        for m in parts
        if m.values is not None
    ]
    bias = 0.0 if segment.value.bias is None else float(np.abs(segment.value.bias).max())
    return Facts(tuple(map(spectral_norm, parts)), tuple(reaches), bias, segment.bound)


def spectral_norm(m: Matrix) -> float:
    """Upper estimate of the largest singular value: power iteration, and a fifth more.

    After k steps from a random start the iteration is expected to be short of the square by at most
    0.871 log(d) / (k - 1) of it (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992): a fifth
    covers that up to d = 50,000. Weights decide this number, which stays with the model owner.
    """
    if m.identity:
        return 1.0
    if m.values is None or not m.count or not m.values.any():
        return 0.0
    rows, columns = int(m.rows.max()) + 1, int(m.columns.max()) + 1
    # no secret: a direction to start from, the same each time, about Gaussian as a sum of eight
    start = np.frombuffer(derive(bytes(32), "spectral norm", size=8 * columns), dtype=np.uint8)
    x: Values = (start.reshape(columns, 8) - 127.5).sum(axis=1)
    norm = 0.0
    for _ in range(POWER_ITERATIONS):
        x /= max(float(np.linalg.norm(x)), 1e-300)
        y = np.bincount(m.rows, weights=m.values * x[m.columns], minlength=rows)
        norm = float(np.linalg.norm(y))
        x = np.asarray(np.bincount(m.columns, weights=m.values * y[m.rows], minlength=columns), np.float64)
    return 1.2 * norm


def _scales(plan: Plan) -> dict[str, float]:
    """Scale of every value: 2^50, but for products of two values, which have one square over a prime."""
    found: dict[str, float] = {}
    for step in plan.steps:
        match step:
            case Source():
                found[step.name] = step.scale
            case Linear() | Activate():
                found[step.name] = SCALE
            case Product():
                prime = plan.parameters.primes[step.level - 1]
                found[step.name] = found[step.first] * found[step.second] / prime
    return found


def _last_uses(plan: Plan) -> dict[int, list[str]]:
    """Values that are not needed after a step, by its place."""
    last: dict[str, int] = {}
    for at, step in enumerate(plan.steps):
        match step:
            case Source():
                used: tuple[str, ...] = (step.name,)
            case Linear():
                used = step.inputs
            case Activate():
                used = (step.argument,)
            case Product():
                used = (step.first, step.second)
            case Refresh():
                used = tuple(v.name for v in step.values)
            case Opened():
                used = (step.value,)
        last.update(dict.fromkeys(used, at))
    found: dict[int, list[str]] = {}
    for name, at in last.items():
        found.setdefault(at, []).append(name)
    return found


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Where one of the keys differs from the entry before."""
    changed = np.ones(keys[0].size, dtype=bool)
    changed[1:] = np.any([k[1:] != k[:-1] for k in keys], axis=0)
    return np.flatnonzero(changed)
