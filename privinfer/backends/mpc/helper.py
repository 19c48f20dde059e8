"""The helper: deals correlated randomness before each inference and never sees a masked value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from privinfer.backends.base import Idle, Network, Play, Progress, Receive, Send, Table
from privinfer.backends.mpc import roles
from privinfer.errors import InputError
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import (
    blinded,
    dealing,
    extend,
    inputs,
    larger,
    linear,
    pieces,
    product,
    relu,
    truncate,
)
from privinfer.protocols.mpc import table as lookup
from privinfer.protocols.mpc.wires import MaskPair
from privinfer.protocols.randomness import SEED_BYTES, Scope, Seed, Stream, derive


def pair_seed(from_helper: bytes, from_evaluator: bytes) -> Seed:
    """The seed a helper and an evaluator share: both contribute, so one good source is enough."""
    return Seed(derive(from_helper, "pair", from_evaluator, size=SEED_BYTES))


def agree(known: int | None, said: Sequence[tuple[str, int]]) -> int:
    """The rows that all inputs still bring.

    Parameters
    ----------
    known : int or None
        What earlier chunks left to come.
    said : sequence of (str, int)
        An owner and its rows, for each input.

    Raises
    ------
    InputError
        They differ; names the owner that differs from what is known, or from most. Of two owners it cannot
        be told which of them is wrong: both are named.
    """
    rows: dict[str, int] = {}
    for owner, count in said:
        if rows.setdefault(owner, count) != count:
            raise InputError(f"brings {count} rows of one input and {rows[owner]} of another", culprit=owner)
    votes = Counter(rows.values())
    (most, count), *rest = votes.most_common() if known is None else [(known, 1)]
    tied = [most, *(value for value, many in rest if many == count)]
    odd = [owner for owner, value in rows.items() if value != most]
    if odd:
        named = odd[0] if len(tied) == 1 else " or ".join(o for o, v in rows.items() if v in tied)
        raise InputError(f"brings {rows[odd[0]]} rows where others bring {most}", culprit=named)
    return most


class Helper(Idle):
    """Runs the program over masks alone."""

    def __init__(self, program: fp.Program, table: Table) -> None:
        self.program, self.table = program, table
        self.seeds: list[Seed] = []
        self.weights: dict[int, MaskPair] = {}
        self.chosen = program
        self.answerers: dict[int, blinded.Answerer] = {}
        self.batch: int | None = None
        self.later: int | None = None
        self.at_once = roles.limits(program, table)

    def setup(self) -> Play:
        """Agree on a seed with each evaluator; learn the weights' masks."""
        yield from self._agree_on_seeds()
        data = yield Receive(roles.MODEL_OWNER, roles.SEEDS, 2 * SEED_BYTES)
        scope = Scope(self.table.session, 0)
        first, second = (Stream(Seed(data[k : k + SEED_BYTES]), scope, "weights") for k in (0, SEED_BYTES))
        for step, op in self.program.bilinear():
            self.weights[step.index] = linear.weight_mask(step, op, (first, second))

    def _agree_on_seeds(self) -> Play:
        for evaluator in roles.EVALUATORS:
            own = Seed.fresh()
            yield Send(evaluator, roles.SEEDS, own.expose())
            theirs = yield Receive(evaluator, roles.SEEDS, SEED_BYTES)
            self.seeds.append(pair_seed(own.expose(), theirs))

    def offline(self, scope: Scope) -> Play:
        """Deal every gate, in the order of the program."""
        yield from self._offline(scope, self.table.network, self.later or None)

    def _offline(self, scope: Scope, network: Network, left: int | None) -> Play:
        dealer = dealing.Dealer(
            (Stream(self.seeds[0], scope, dealing.DEAL), Stream(self.seeds[1], scope, dealing.DEAL)), scope
        )
        masks: dict[int, MaskPair] = {}
        seeds: dict[int, list[Seed]] = {}
        said: list[tuple[str, int]] = []
        for step in self.program.sources():
            owner = self.table.owners[step.node]
            data = yield Receive(roles.owner(owner), step.index, inputs.helper_size())
            count, seeds[step.index] = inputs.parse_seeds(data, owner)
            said.append((owner, count))
        left = agree(left, said)
        rows, self.later = roles.cut(left, self.at_once[network])
        for step in self.program.sources():
            first, second = seeds[step.index]
            masks[step.index] = inputs.mask_pair(step, (rows, *step.type.shape), (first, second), scope)
        self.batch = rows
        self.answerers.clear()
        self.chosen = roles.choose(self.program, network, rows)
        total = len(self.program.steps)
        for step in self.chosen.steps:
            if step.index in masks:
                continue
            dealer.step = step.index
            masks[step.index] = self._deal(step, dealer, [masks[i] for i in step.inputs])
            parcels = list(dealer.collect())
            cost = roles.step_cost(self.chosen, step, rows)
            one, two = roles.passed_on(cost, network)
            if one:  # E1 gets the first part of what is common, E2 the second; they exchange these
                parcels = [b"".join((parcels[0][:one], parcels[0][one + two :])), parcels[1][one:]]
            for evaluator, parcel in zip(roles.EVALUATORS, parcels, strict=True):
                if parcel:
                    yield Send(evaluator, step.index, parcel)
            yield Progress(step.index + 1, total, step.node)

    def deal(self, scope: Scope, batch: int) -> Play:
        """Comparison keys for everything, since nobody waits for them; the helper itself keeps nothing."""
        yield from self._offline(scope, roles.AHEAD, batch)
        self.later = None  # the next run begins anew

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """Nothing is left to do: what was dealt ahead asks no helper."""
        self.answerers.clear()
        self.chosen = self.program
        self.batch = self.later = None  # nobody tells it
        yield from ()

    def online(self) -> Play:
        """Answer the comparisons that were chosen to ask."""
        names = self.table.party[roles.E1], self.table.party[roles.E2]
        for step in roles.asking(self.chosen):
            size = roles.step_cost(self.chosen, step, self.batch or 0).asked
            asked = []
            for evaluator in roles.EVALUATORS:
                asked.append((yield Receive(evaluator, step.index, size)))
            answer = self.answerers.pop(step.index).answer(asked[0], asked[1], names)
            if answer:
                yield Send(roles.E2, step.index, answer)

    def _deal(self, step: fp.Step, dealer: dealing.Dealer, xs: list[MaskPair]) -> MaskPair:
        match step.operation:
            case fp.Bilinear() as op:
                return linear.deal(step, op, dealer, xs[0], self.weights[step.index])
            case fp.Rectify(is_blinded):
                if not is_blinded:
                    return relu.deal(dealer, xs[0])
                mask, self.answerers[step.index] = blinded.deal(dealer, xs[0])
                return mask
            case fp.Extend():
                return extend.deal(dealer, xs[0])
            case fp.Truncate() as op:
                return truncate.deal(step, op, dealer, xs[0])
            case fp.Pieces() as op:
                return pieces.deal(step, op, dealer, xs[0])
            case fp.Table() as op:
                return lookup.deal(step, op, dealer, xs[0])
            case fp.Product() as op:
                return product.deal(step, op, dealer, xs[0], xs[1])
            case fp.Larger():
                return larger.deal(dealer, xs[0])
            case fp.Reveal() | fp.Offset():
                return xs[0]
            case _:
                first = fp.apply_local(step, [x.first for x in xs])
                second = fp.apply_local(step, [x.second for x in xs])
                return MaskPair(first, second, step.type.bits)
