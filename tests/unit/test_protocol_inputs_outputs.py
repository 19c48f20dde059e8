"""Inputs that both evaluators must hold alike, and outputs that one receiver alone can read."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privinfer.errors import InputError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import inputs, outputs
from privinfer.protocols.mpc.dealing import packed_size
from privinfer.protocols.mpc.wires import MaskShare, Wide, masked
from privinfer.protocols.randomness import U64, Scope
from privinfer.protocols.sealing import OVERHEAD
from tests.support.gates import ring, step_of
from tests.support.simulate import identity, verify

SCOPE = Scope(b"s" * 32, 3, 1)
STEP = fp.Step(0, fp.Source("xray"), (), fp.Type((2, 3), 64, 16), "xray")
BATCHES = st.sampled_from([0, 1, 2, 5])
seeds = st.integers(0, 2**32)


def values(seed: int, batch: int) -> U64:
    """Encoded inputs of STEP."""
    return np.random.default_rng(seed).integers(0, 2**64, (batch, 2, 3), dtype=np.uint64)


def mask(x: U64, seeds_: inputs.InputSeeds | None = None, party: str = "hospital") -> bytes:
    """What an owner sends online."""
    seeds_ = seeds_ or inputs.InputSeeds.fresh(len(x))
    return inputs.mask_input(STEP, x, seeds_, SCOPE, identity(party).sign).online()


def parse(data: bytes, batch: int, step: fp.Step = STEP, scope: Scope = SCOPE) -> inputs.Received:
    """What an evaluator makes of the online message."""
    return inputs.Received.parse(step, "hospital", (batch, 2, 3), data, scope, verify)


# -- inputs ----------------------------------------------------------------------------------------


@given(BATCHES, seeds)
def test_an_input_arrives_masked(batch: int, seed: int) -> None:
    x = values(seed, batch)
    sent = inputs.InputSeeds.fresh(batch)
    online = mask(x, sent)
    helped, pair_seeds = inputs.parse_seeds(sent.to_helper(), "hospital")
    pair = inputs.mask_pair(STEP, x.shape, (pair_seeds[0], pair_seeds[1]), SCOPE)
    wires = []
    for k in range(2):
        data = sent.to_evaluator(k)
        assert len(data) == inputs.evaluator_size()
        said, (seed_k,) = inputs.parse_seeds(data, "hospital")
        assert said == helped == batch
        half = inputs.mask_share(STEP, x.shape, seed_k, SCOPE)
        np.testing.assert_array_equal(half.values, (pair.first, pair.second)[k])
        received = parse(online, batch)
        assert type(received.wire) is Wide
        wires.append(received)
    assert len(online) == inputs.online_size(STEP, batch)
    assert len(sent.to_helper()) == inputs.helper_size()
    np.testing.assert_array_equal(wires[0].wire.values - pair.total(), x)
    said_ = inputs.comparison_message(wires)
    assert len(said_) == inputs.compared_size(2)
    inputs.compare(wires, said_, "startup", SCOPE, verify)


@given(st.integers(0, 8 * 6 + inputs.SIGNATURE_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_is_the_owners_fault(at: int, flip: int) -> None:
    data = bytearray(mask(values(0, 1)))
    data[at] ^= flip
    with pytest.raises(ProtocolViolation) as caught:
        parse(bytes(data), 1)
    assert caught.value.culprit == "hospital"


def test_a_signature_serves_one_input_of_one_run() -> None:
    sent = mask(values(0, 1))
    other = fp.Step(0, fp.Source("dna"), (), STEP.type, "dna")
    for step, scope in (
        (other, SCOPE),
        (STEP, Scope(b"t" * 32, 3, 1)),
        (STEP, Scope(SCOPE.session, 4, 1)),
        (STEP, Scope(SCOPE.session, 3, 2)),
    ):
        with pytest.raises(ProtocolViolation) as caught:
            parse(sent, 1, step, scope)
        assert caught.value.culprit == "hospital"
    with pytest.raises(ProtocolViolation):
        parse(mask(values(0, 1), party="laboratory"), 1)


def test_two_values_for_two_evaluators_are_the_owners_fault() -> None:
    first, second = (parse(mask(values(seed, 1)), 1) for seed in (1, 2))
    with pytest.raises(ProtocolViolation, match="two different values") as caught:
        inputs.compare([first], inputs.comparison_message([second]), "startup", SCOPE, verify)
    assert caught.value.culprit == "hospital"
    assert caught.value.step == "xray"


def test_a_digest_nobody_signed_is_the_evaluators_fault() -> None:
    own = parse(mask(values(1, 1)), 1)
    message = bytearray(inputs.comparison_message([own]))
    for at in (0, inputs.DIGEST_BYTES - 1):
        wrong = bytearray(message)
        wrong[at] ^= 1
        with pytest.raises(ProtocolViolation, match="never signed") as caught:
            inputs.compare([own], bytes(wrong), "startup", SCOPE, verify)
        assert caught.value.culprit == "startup"


def test_fresh_seeds_are_fresh() -> None:
    one, two = inputs.InputSeeds.fresh(1), inputs.InputSeeds.fresh(1)
    exposed = [s.expose() for both in (one, two) for s in both.seeds]
    assert len(set(exposed)) == 4


def test_seeds_that_were_kept_give_the_same_masks() -> None:
    """What the owner keeps of a deal ahead is what it sent the helper."""
    dealt = inputs.InputSeeds.fresh(2)
    kept = inputs.InputSeeds.parse(dealt.to_helper())
    assert (kept.batch, kept.seeds) == (dealt.batch, dealt.seeds)
    assert mask(values(1, 2), kept)[:96] == mask(values(1, 2), dealt)[:96]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_masks_of_another_batch_are_refused(rows: int) -> None:
    with pytest.raises(InputError, match="dealt for"):
        mask(values(1, rows), inputs.InputSeeds.fresh(2))


def test_a_batch_has_a_limit() -> None:
    inputs.parse_seeds(inputs.MAX_BATCH.to_bytes(4, "little") + bytes(32), "hospital")
    for batch in (inputs.MAX_BATCH + 1, 2**32 - 1):
        with pytest.raises(InputError) as caught:
            inputs.parse_seeds(batch.to_bytes(4, "little") + bytes(32), "hospital")
        assert caught.value.culprit == "hospital"


# -- outputs ---------------------------------------------------------------------------------------


@st.composite
def results(draw: st.DrawFn) -> tuple[fp.Step, int, U64, list[U64]]:
    """A step that reveals, a batch, the secret and both halves of its mask."""
    bits, batch = draw(st.integers(4, 64)), draw(BATCHES)
    step = step_of(fp.Reveal("risk"), draw(st.sampled_from([(1,), (3, 2), (13,)])), bits)
    rng = np.random.default_rng(draw(seeds))
    shape = (batch, *step.type.shape)
    y, r1, r2 = (fp.low_bits(rng.integers(0, 2**64, shape, dtype=np.uint64), bits) for _ in range(3))
    return step, batch, y, [r1, r2]


def halves(step: fp.Step, y: U64, masks: list[U64]) -> list[bytes]:
    """What E1 and E2 send."""
    bits = step.type.bits
    wire = masked(fp.low_bits(y + masks[0] + masks[1], bits), bits)
    return [outputs.message(k, wire, MaskShare(masks[k], bits)) for k in range(2)]


@given(results())
def test_an_output_is_put_together(drawn: tuple[fp.Step, int, U64, list[U64]]) -> None:
    step, batch, y, masks = drawn
    first, second = halves(step, y, masks)
    assert [OVERHEAD + len(first), OVERHEAD + len(second)] == [
        outputs.message_size(step, k, batch) for k in range(2)
    ]
    np.testing.assert_array_equal(outputs.reveal(step, batch, first, second, "a or b"), y)
    packed = first[: packed_size(y.size, step.type.bits)]
    assert second[: outputs.DIGEST_BYTES] == hashlib.sha256(packed).digest()


@given(results(), st.data())
def test_two_different_results_name_both_evaluators(
    drawn: tuple[fp.Step, int, U64, list[U64]], data: st.DataObject
) -> None:
    """A changed y^ or digest is always seen; one party's mask is its own to choose."""
    step, batch, y, masks = drawn
    first, second = halves(step, y, masks)
    size = packed_size(y.size, step.type.bits)
    at = data.draw(st.integers(0, size + outputs.DIGEST_BYTES - 1))
    wrong = [bytearray(first), bytearray(second)]
    if at < size:
        wrong[0][at] ^= data.draw(st.integers(1, 255))
    else:
        wrong[1][at - size] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolViolation) as caught:
        outputs.reveal(step, batch, bytes(wrong[0]), bytes(wrong[1]), "a or b")
    assert caught.value.culprit == "a or b"


def test_a_mask_with_filled_padding_is_malformed() -> None:
    step = step_of(fp.Reveal("risk"), (1,), 5)
    first, second = halves(step, ring([[3]], 5), [ring([[1]], 5), ring([[2]], 5)])
    for wrong in ((first[:-1] + b"\xff", second), (first, second[:-1] + b"\xff")):
        with pytest.raises(ProtocolViolation, match="malformed"):
            outputs.reveal(step, 1, *wrong, "a or b")
