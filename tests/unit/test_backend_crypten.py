"""The `crypten` backend: every operator within bounds derived from its fixed point, with 2 to 4 ranks.

Whatever computes needs CrypTen (`make crypten`) and is skipped without it. CrypTen's truncation is wrong
now and then by design; inputs here are small enough for less than one such run in ten thousand.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privinfer.backends import crypten
from privinfer.backends.base import Phase, Play, Private, Progress, Receive, Send, Table
from privinfer.backends.crypten import blocking, bounds, library, rank
from privinfer.backends.crypten.communicator import SLICED, Communicator
from privinfer.errors import (
    ConfigError,
    InputError,
    IntegrityError,
    ModelUnsupported,
    PrecisionError,
    ProtocolViolation,
)
from privinfer.graph import ir, reference
from privinfer.protocols.privacy import Charge
from privinfer.protocols.randomness import Scope
from privinfer.protocols.sealing import OVERHEAD
from privinfer.runtime.drive import drive
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest, Party
from privinfer.session.terms import Release
from tests.properties.test_programs import EVERY
from tests.support.bounds import output_float_errors
from tests.support.simulate import Message, RecordingPost, exchange_keys
from tests.support.strategies import architectures, random_model, rows

I, N, O = ir.Input, ir.Node, ir.Output  # noqa: E741
DEALER = "startup"


def installed() -> str | None:
    """None, or why not."""
    try:
        crypten.check_installed()
    except ConfigError as error:
        return f"{error.message}: {error.hint}"
    return None


MISSING = installed()
needs_crypten = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


class Session:
    """All ranks here, one after the other, with every message on record."""

    def __init__(
        self,
        model: ir.Model,
        ranks: int,
        *,
        owners: Mapping[str, str] | None = None,
        receivers: Mapping[str, str] | None = None,
    ) -> None:
        a = model.architecture
        self.names = [DEALER, *(f"p{k}" for k in range(1, ranks))]
        self.owners = owners or {s.name: self.names[1 + k % (ranks - 1)] for k, s in enumerate(a.inputs)}
        self.receivers = receivers or {o.name: self.names[-1] for o in a.outputs}
        party = {f"rank:{k}": name for k, name in enumerate(self.names)}
        self.table = Table(party, self.owners, self.receivers, a, bytes(32))
        self.post = RecordingPost(self.table)
        self.private = {n: Private(_none, _none, model if n == DEALER else None) for n in self.names}
        self.players = {
            r: rank.Rank(k, self.table, self.private[n]) for k, (r, n) in enumerate(party.items())
        }
        self._drive({r: p.setup() for r, p in self.players.items()}, Phase.SETUP)

    def infer(self, x: Mapping[str, ir.Array]) -> dict[str, dict[str, ir.Array]]:
        """Outputs by party."""
        for name, private in self.private.items():
            private.inputs.clear()
            private.inputs.update({k: v for k, v in x.items() if self.owners[k] == name})
        exchange_keys(self.table, {r: self.private[n] for r, n in self.table.party.items()})
        found = self._drive({r: p.online() for r, p in self.players.items()}, Phase.ONLINE)
        assert not self.post.left_over()
        return {self.table.party[role]: outputs for role, outputs in found.items()}

    def _drive(self, plays: dict[str, Play], phase: Phase) -> dict[str, Any]:
        try:
            return drive(plays, self.post, phase)
        finally:
            for play in plays.values():  # as the runtime does; ends the threads
                play.close()

    def messages(self, phase: Phase) -> list[Message]:
        """Of one phase."""
        return [m for m in self.post.transcript if m.phase is phase]


def _none(*_: Any) -> Any:
    raise AssertionError("crypten signs nothing")


def check(model: ir.Model, ranks: int, x: Mapping[str, ir.Array], got: Mapping[str, ir.Array]) -> None:
    """Against float64, within what the fixed point and the layers' sizes allow."""
    exact, bound = reference.run(model, x), bounds.analyse(model, ranks)
    rounding = output_float_errors(model)
    assert got.keys() == exact.keys()
    for output in model.architecture.outputs:
        y = got[output.name]
        assert y.shape == exact[output.name].shape
        allowed = bound[output.value].error + rounding[output.name]
        assert (np.abs(y - exact[output.name]) <= allowed).all(), output.name


def run(model: ir.Model, ranks: int, x: Mapping[str, ir.Array]) -> dict[str, ir.Array]:
    """Outputs of a fresh session, whoever got them."""
    found = Session(model, ranks).infer(x)
    return {name: y for own in found.values() for name, y in own.items()}


def one(op: ir.Op, source: ir.Input) -> ir.Architecture:
    """A graph of one operator."""
    return ir.Architecture((source,), (N("n", op, (source.name,)),), (O("y", "n"),))


# -- operators -------------------------------------------------------------------------------------


UNSTATED = ir.Function | ir.Piecewise | ir.Max | ir.ArgMax | ir.Softmax | ir.Normalize
HERE = [k for k, a in EVERY.items() if not any(isinstance(n.op, UNSTATED) for n in a.nodes)]


@pytest.mark.parametrize("name", [k for k in EVERY if k not in HERE])
def test_operators_without_a_stated_error_are_refused(name: str) -> None:
    with pytest.raises(ModelUnsupported, match="not on crypten"):
        bounds.analyse(random_model(EVERY[name], 5), 2)


@needs_crypten
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", HERE)
def test_every_operator(name: str, ranks: int) -> None:
    """The table that `mpc` is held to, too: all operators, paddings, groups, dilations, branches."""
    model = random_model(EVERY[name], 5)
    session = Session(model, ranks)
    for number, batch in enumerate((3, 1)):
        x = rows(model.architecture, batch, number)
        found = session.infer(x)
        check(model, ranks, x, found.pop(session.names[-1]))
        assert not any(found.values())


@needs_crypten
@pytest.mark.parametrize("name", HERE)
def test_a_batch_of_none(name: str) -> None:
    model = random_model(EVERY[name], 5)
    shapes = model.architecture.shapes()
    got = run(model, 3, rows(model.architecture, 0, 1))
    assert {k: v.shape for k, v in got.items()} == {
        o.name: (0, *shapes[o.value]) for o in model.architecture.outputs
    }


def expected_failures(model: ir.Model, ranks: int, batch: int) -> float:
    """How many truncations are expected to go wrong at most: |x| / 2**32 each."""
    bound = bounds.analyse(model, ranks)
    truncating = (ir.Linear, ir.Conv2d, ir.Scale, ir.AvgPool2d, ir.Multiply, ir.Mul, ir.MatMul)
    nodes = [n for n in model.architecture.nodes if isinstance(n.op, truncating)]
    return batch * sum(float(bound[n.name].magnitude.sum()) for n in nodes) / 2**32


@needs_crypten
@settings(max_examples=40)
@given(architectures(), st.sampled_from([2, 3, 5]), st.sampled_from([1, 4]), st.integers(0, 2**32))
def test_random_architectures(architecture: ir.Architecture, ranks: int, batch: int, seed: int) -> None:
    model = random_model(architecture, seed)
    try:
        assume(expected_failures(model, ranks, batch) < 1e-6)
    except PrecisionError:
        assume(False)
    x = rows(architecture, batch, seed)
    check(model, ranks, x, run(model, ranks, x))


@needs_crypten
def test_large_values_are_added_up_in_slices() -> None:
    """From SLICED elements on each of three ranks adds up a third; the result is the same."""
    model = random_model(one(ir.Relu(), I("x", (SLICED // 2 + 1,), -2, 2)), 1)
    for batch in (1, 3):
        x = rows(model.architecture, batch, 4)
        check(model, 3, x, run(model, 3, x))


# -- the session -----------------------------------------------------------------------------------


@needs_crypten
def test_parties_may_hold_several_roles() -> None:
    a = ir.Architecture(
        (I("u", (3,), -1, 1), I("v", (3,), -1, 1)),
        (N("s", ir.Add(), ("u", "v")), N("r", ir.Relu(), ("s",))),
        (O("y", "r"), O("z", "s")),
    )
    model = random_model(a, 0)
    x = rows(a, 2, 1)
    for owners in ({"u": DEALER, "v": "p1"}, {"u": "p1", "v": "p1"}):
        for receivers in ({"y": DEALER, "z": "p1"}, {"y": "p2", "z": "p2"}, {"y": "p1", "z": "p2"}):
            found = Session(model, 3, owners=owners, receivers=receivers).infer(x)
            for output, party in receivers.items():
                assert {k for k in found[party] if receivers[k] != party} == set()
                assert output in found[party]
            check(model, 3, x, {k: v for own in found.values() for k, v in own.items()})


@needs_crypten
def test_the_result_goes_to_its_receiver_and_by_no_detour() -> None:
    """The last step is one share from each other rank to the receiver; gloo's reduce would go round."""
    model = random_model(one(ir.Linear(4, 3), I("x", (4,), -1, 1)), 2)
    session = Session(model, 4, receivers={"y": "p2"})
    session.infer(rows(model.architecture, 2, 1))
    online = session.messages(Phase.ONLINE)
    last = max(m.step for m in online)
    shown = [(m.sender, m.receiver, len(m.data)) for m in online if m.step == last]
    assert sorted(shown) == [(f"rank:{k}", "rank:2", OVERHEAD + 2 * 3 * 8) for k in (0, 1, 3)]


@needs_crypten
def test_weights_and_inputs_are_never_sent() -> None:
    """Shares come from common seeds: setup moves three seeds, and no message holds what was shared."""
    model = random_model(one(ir.Linear(4, 3), I("x", (4,), -1, 1)), 2)
    session = Session(model, 3)
    x = rows(model.architecture, 1, 1)
    session.infer(x)
    assert {len(m.data) for m in session.messages(Phase.SETUP)} == {8}
    secrets = [*x["x"].ravel(), *model.parameters["n"]["weight"].ravel()]
    words = {int(v) for v in np.ldexp(bounds.rounded(secrets), bounds.BITS)} - {0}
    for message in session.post.transcript:
        assert not words & set(np.frombuffer(message.data, "<i8").tolist())


@needs_crypten
def test_batches_that_differ_name_the_owner() -> None:
    a = ir.Architecture(
        (I("u", (3,), -1, 1), I("v", (3,), -1, 1)), (N("s", ir.Add(), ("u", "v")),), (O("y", "s"),)
    )
    session = Session(random_model(a, 0), 3)
    with pytest.raises(InputError) as caught:
        session.infer({"u": np.zeros((2, 3)), "v": np.zeros((3, 3))})
    assert caught.value.culprit == "p2"
    assert caught.value.message == "brings 3 rows where others bring 2"


@needs_crypten
def test_nothing_is_dealt_ahead() -> None:
    session = Session(random_model(EVERY["relu"], 0), 2)
    assert not any(crypten.Crypten().keeps(role) for role in session.players)
    with pytest.raises(ConfigError, match="deals nothing ahead"):
        next(session.players["rank:0"].deal(Scope(bytes(32), 0), 1))


@needs_crypten
def test_the_dealer_counts_answers_before_its_share_leaves() -> None:
    session = Session(random_model(one(ir.Linear(4, 3), I("x", (4,), -1, 1)), 2), 3)
    x, table = {"x": np.zeros((2, 4))}, dataclasses.replace(session.table, release=Release(answers=2))
    session.players["rank:0"].table = table
    with pytest.raises(IntegrityError, match="nothing to count"):
        session.infer(x)
    session = Session(random_model(one(ir.Linear(4, 3), I("x", (4,), -1, 1)), 2), 3)
    shown: list[int] = []

    class Counting:
        def spend(self, charges: list[Charge]) -> None:
            assert charges == [Charge("p2", 2)]
            last = max(m.step for m in session.messages(Phase.ONLINE))
            shown.extend(m.step for m in session.messages(Phase.ONLINE) if m.sender == "rank:0")
            shown.append(last)

    player = session.players["rank:0"]
    player.table = dataclasses.replace(session.table, release=Release(answers=2))
    player.private = dataclasses.replace(player.private, budget=Counting())  # type: ignore[arg-type]
    session.infer(x)
    after = [m.step for m in session.messages(Phase.ONLINE) if m.sender == "rank:0"][len(shown) - 1 :]
    assert len(after) == 1  # its share of the result, and nothing else


@needs_crypten
def test_one_rank_that_reveals_alone_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """CrypTen waits for ever then (its issue 374); here the steps no longer match, and somebody is named."""
    model = random_model(one(ir.Linear(4, 3), I("x", (4,), -1, 1)), 2)
    session = Session(model, 2)
    original = rank.apply

    def early(library: Any, node: ir.Node, weights: Any, xs: list[Any]) -> Any:
        if library.communicator.get().get_rank() == 1:
            xs[0].get_plain_text()
        return original(library, node, weights, xs)

    monkeypatch.setattr(rank, "apply", early)
    with pytest.raises(ProtocolViolation) as caught:
        session.infer(rows(model.architecture, 1, 1))
    assert caught.value.culprit in (DEALER, "p1")


@needs_crypten
def test_crypten_is_left_as_it_was_for_everybody_else() -> None:
    import torch

    before = torch.get_num_threads()
    own = library.load()
    generators = dict(own.generators["prev"])
    run(random_model(one(ir.Relu(), I("x", (2,))), 0), 2, {"x": np.ones((1, 2))})
    assert torch.get_num_threads() == before
    assert dict(own.generators["prev"]) == generators == {}
    assert not own.communicator.is_initialized()
    with pytest.raises(RuntimeError, match="not initialized"):
        own.communicator.get()
    assert not set(library.STAND_INS) & set(sys.modules)
    assert not [t for t in threading.enumerate() if t.name.startswith("crypten")]


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.parametrize("divisor", [1, 2, 3, 9, 49, 1 << 16])
def test_the_bound_on_a_division(ranks: int, divisor: int) -> None:
    """CrypTen's formula in Python integers, where no share wraps unexpectedly."""
    rng = np.random.default_rng(ranks * divisor)
    worst = 0.0
    for _ in range(2000):
        value = int(rng.integers(-(2**40), 2**40))
        shares = [int(s) for s in rng.integers(-(2**63), 2**63, ranks - 1, dtype=np.int64)]
        shares.append((value - sum(shares) + 2**63) % 2**64 - 2**63)
        wraps, rest = divmod(sum(shares) - value, 2**64)
        assert rest == 0
        quotient = sum(abs(s) // divisor * (1 if s >= 0 else -1) for s in shares)
        if ranks > 2:
            assert abs(wraps) <= ranks // 2
            quotient -= wraps * 4 * (2**62 // divisor)
        elif wraps:
            continue  # what CrypTen cannot see with two ranks
        worst = max(worst, abs(quotient - value / divisor))
    assert worst <= bounds.division_ulp(ranks, divisor)


@needs_crypten
@pytest.mark.parametrize("ranks", [2, 3])
def test_truncation_goes_wrong_as_often_as_we_say(ranks: int) -> None:
    """A product of 2**29 is off by 2**32 once in eight: 500 of 4000, give or take 21."""
    model = random_model(one(ir.Multiply(1.5), I("x", (4000,), 0, 2.0**29 / 1.5)), 0)
    x = np.full((1, 4000), 2.0**29 / 1.5)
    error = np.abs(run(model, ranks, {"x": x})["y"] - 2.0**29)
    wrong = error > 1
    assert 350 < wrong.sum() < 650
    assert (np.abs(error[wrong] - 2.0**32) < 1).all()


def test_values_that_may_leave_the_ring_are_refused() -> None:
    a = one(ir.Linear(4, 1), I("x", (4,), -(2.0**20), 2.0**20))
    model = ir.Model(a, {"n": {"weight": np.full((4, 1), 1024.0), "bias": np.zeros(1)}})
    with pytest.raises(PrecisionError, match="layer 'n'"):
        bounds.analyse(model, 2)


def test_an_operator_that_is_not_there_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sorted(ir.Operator):
        def shape(self, x: ir.Shape) -> ir.Shape:
            return x

    node = N("order", Sorted(), ("x",))  # type: ignore[arg-type]
    model = ir.Model(ir.Architecture((I("x", (2,)),), (node,), (O("y", "order"),)), {})
    with pytest.raises(ModelUnsupported) as caught:
        bounds.analyse(model, 2)
    assert caught.value.message == "node 'order' (Sorted): not on crypten"
    if importlib.util.find_spec("torch"):
        with pytest.raises(ModelUnsupported, match="not on crypten"):
            rank.apply(None, node, {}, [None])


# -- the communicator ------------------------------------------------------------------------------


def test_nothing_that_would_pickle_is_there() -> None:
    for name in ("send_obj", "recv_obj", "broadcast_obj"):
        assert not hasattr(Communicator, name)


@needs_torch
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_collectives(ranks: int) -> None:
    """Each of them against what it means, small and in slices."""
    import torch
    from torch.distributed import ReduceOp

    roles = [f"rank:{k}" for k in range(ranks)]
    table = Table({r: r for r in roles}, {}, {}, EVERY["nothing"], bytes(32))

    def tensors(seed: int, *shape: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [torch.from_numpy(rng.integers(-(2**63), 2**63, shape)) for _ in range(ranks)]

    small, large = tensors(1, 3, 2), tensors(2, 2, SLICED // 2 + 1)
    total = {id(group): torch.stack(group).sum(0) for group in (small, large)}

    def xor(group: list[Any]) -> Any:
        out = group[0]
        for other in group[1:]:
            out = out ^ other
        return out

    def work(channel: blocking.Channel, k: int) -> None:
        c = Communicator(channel, k, roles)
        for group in (small, large):
            assert torch.equal(c.all_reduce(group[k]), total[id(group)])
            assert torch.equal(c.all_reduce(group[k], op=ReduceOp.BXOR), xor(group))
            sum_at = c.reduce(group[k], 1)
            assert (sum_at is None) == (k != 1)
            assert k != 1 or torch.equal(sum_at, total[id(group)])
        both = c.all_reduce([small[k], large[k]], batched=True)
        assert torch.equal(both[0], total[id(small)])
        assert torch.equal(both[1], total[id(large)])
        assert [torch.equal(a, b) for a, b in zip(c.all_gather(small[k]), small, strict=True)] == [
            True
        ] * ranks
        assert torch.equal(c.scatter(small, 1), small[k])
        assert torch.equal(c.broadcast(small[k].clone(), 0), small[0])
        found = torch.zeros_like(small[0])
        c.isend(small[k], (k + 1) % ranks).wait()
        c.irecv(found, (k - 1) % ranks).wait()
        assert torch.equal(found, small[k - 1])
        with pytest.raises(TypeError, match="64-bit integer"):
            c.all_gather(small[k].double())

    post = RecordingPost(table)
    drive({r: blocking.play(lambda c, k=k: work(c, k), r) for k, r in enumerate(roles)}, post, Phase.ONLINE)
    assert not post.left_over()


def test_a_play_of_blocking_code() -> None:
    def work(channel: blocking.Channel) -> str:
        channel.send("b", 1, b"x")
        channel.progress(1, 2, "half")
        return channel.receive("b", 2, 3).decode()

    play = blocking.play(work, "one")
    assert next(play) == Send("b", 1, b"x")
    assert next(play) == Progress(1, 2, "half")
    assert next(play) == Receive("b", 2, 3)
    with pytest.raises(StopIteration) as done:
        play.send(b"abc")
    assert done.value.value == "abc"

    def fails(channel: blocking.Channel) -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        next(blocking.play(fails, "two"))


def test_a_play_that_is_closed_ends_its_thread() -> None:
    ended = threading.Event()

    def work(channel: blocking.Channel) -> None:
        try:
            while True:
                try:
                    channel.receive("b", 0, 1)
                except RuntimeError:  # as CrypTen does around its conversions
                    continue
        finally:
            ended.set()

    play = blocking.play(work, "closed play")
    assert next(play) == Receive("b", 0, 1)
    play.close()
    assert ended.is_set()
    assert not [t for t in threading.enumerate() if t.name == "closed play"]


# -- the door --------------------------------------------------------------------------------------


@pytest.fixture
def manifest() -> Manifest:
    names = ("startup", "hospital", "patient")
    parties = tuple(
        Party(n, "127.0.0.1", 1 + k, Identity.generate(n, days=2).certificate_pem)
        for k, n in enumerate(names)
    )
    return Manifest(
        session="ab" * 16,
        backend="crypten",
        model="cd" * 32,
        parties=parties,
        model_owner="startup",
        evaluators=(),
        helper=None,
        inputs={"x": "hospital"},
        receivers={"y": "patient"},
        insecure=("crypten",),
    )


def test_it_has_to_be_named(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="insecure option 'crypten'"):
        crypten.Crypten().cast(dataclasses.replace(manifest, insecure=()))


@pytest.mark.parametrize("found", [None, "0.4.0"])
def test_what_is_not_installed_says_what_helps(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=r"crypten (0\.4\.0 )?is .*installed") as caught:
        crypten.check_installed()
    assert "make crypten" in str(caught.value.hint)
    assert "--no-deps crypten==0.4.1" in str(caught.value.hint)


@needs_crypten
def test_the_cast_is_all_parties_with_the_dealer_first(manifest: Manifest) -> None:
    cast = crypten.Crypten().cast(manifest)
    assert cast == {"rank:0": "startup", "rank:1": "hospital", "rank:2": "patient"}
    with pytest.raises(ConfigError, match="neither evaluators nor a helper"):
        crypten.Crypten().cast(dataclasses.replace(manifest, helper="patient"))


def test_the_trust_statement_is_plain(manifest: Manifest) -> None:
    said = crypten.trust(manifest)
    assert said.startswith("not private: startup")
    assert "everything" in crypten.sees(manifest, "startup")[0]
    assert crypten.sees(manifest, "hospital")[0] == "its own x"
    assert crypten.sees(manifest, "patient")[-1] == "the result y"
