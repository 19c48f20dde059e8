"""An auditor's look at opened commitments: the same values, and what went to the others derives from them.

Whoever holds an opening (`session/opening.py`) and the values sees that they are what was committed to, and
with backend `mpc` computes again what was sent under that commitment and compares its tags with the chains
that both parties of a pair signed. Nothing here is part of a run.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.backends import ckks
from privinfer.backends.base import Phase, Private, Send, Table
from privinfer.backends.ckks.layout import input_layout
from privinfer.backends.ckks.packing import Packer, seeds
from privinfer.backends.mpc import Mpc, roles
from privinfer.backends.mpc.model_owner import ModelOwner
from privinfer.errors import ConfigError, InputError, IntegrityError, PrivinferError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.graph.lower import compile_program
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import Message
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.commitment import Opening, digest_of, digest_of_weights
from privinfer.protocols.mpc import inputs
from privinfer.protocols.randomness import Scope
from privinfer.runtime.post import CHUNK, STEP_BITS
from privinfer.runtime.transcript import TagKey
from privinfer.session.account import Facts, commitments, facts, legs_of
from privinfer.session.compare import Comparison
from privinfer.session.opening import Opened
from privinfer.session.receipt import Entry, Leg, Receipt
from privinfer.transport.frames import Frame, Kind

Array = npt.NDArray[np.float64]
_STEP = (1 << STEP_BITS) - 1


class Audit:
    """Opens one party's commitments against receipts.

    Parameters
    ----------
    comparison : Comparison
        Receipts of one join, without findings.
    opened : Opened
        What the party shows.

    Raises
    ------
    ConfigError
        The opening is of another join, or no party's.
    """

    def __init__(self, comparison: Comparison, opened: Opened) -> None:
        self._receipts, self._opened = comparison.receipts, opened
        self._any = next(iter(comparison.receipts.values()))
        self._facts: Facts = facts(self._any)
        if not hmac.compare_digest(opened.session, self._any.agreement.digest):
            raise ConfigError("this opening is of another join than the receipts")
        if opened.party not in self._any.certificates:
            raise ConfigError("this opening is of no party of the session")

    # -- inputs ----------------------------------------------------------------------------------

    def input(self, name: str, values: npt.NDArray[Any] | Path, run: int | None = None) -> dict[str, Any]:
        """Check that an input was `values`.

        Parameters
        ----------
        name : str
            Of the input.
        values : ndarray or Path
            Rows as the owner brought them, or one sample; or the fragment that it brought.
        run : int, optional
            Number of the run's first inference; needed where the join had several.

        Returns
        -------
        dict
            ``input``, ``run``, ``commitment`` and ``masked``: evaluator to what was seen.

        Raises
        ------
        ConfigError, InputError
            No such input or run, or values of another shape.
        IntegrityError
            It was something else; the owner is the culprit.
        """
        owner, shape = self._facts.inputs.get(name, ("", ()))
        if owner != self._opened.party:
            raise ConfigError(f"{self._opened.party} owns no input {name!r} in this session")
        runs = [number for number, one in self._opened.inputs if one == name]
        if run is None and len(runs) == 1:
            run = runs[0]
        if run not in runs:
            listed = ", ".join(map(str, sorted(runs))) or "none"
            raise ConfigError(f"which run of input {name!r}?", hint=f"--run, of: {listed}")
        opening = Opening(self._opened.inputs[run, name])
        commitment = commitments(self._receipt_of_run(run), run).get(name)
        if commitment is None:
            raise IntegrityError(f"nobody committed to input {name!r} in run {run}", culprit=owner)
        said: dict[str, Any] = {"input": name, "run": run, "commitment": "opens to these values"}
        where = self._opened.session, run, name
        if isinstance(values, Path):
            with open(values, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            self._open(opening, commitment, "input", digest, *where)
            return said | {"commitment": "opens to this file"}
        array = _rows(name, values, shape)
        self._open(opening, commitment, "input", digest_of(array), *where)
        exact = self._facts.nonlinear == ckks.EXACT
        if self._facts.backend == Mpc.name or (self._facts.backend == ckks.NAME and exact):
            return said | {"masked": self._masked(name, array, opening, run, shape)}
        if self._facts.backend == ckks.NAME:
            return said | {"encrypted": self._encrypted(name, array, opening, run)}
        return said

    def _receipt_of_run(self, run: int) -> Receipt:
        for one in self._receipts.values():
            if any(entered.run == run for entered in one.entered):
                return one
        raise ConfigError(f"no receipt here has run {run}")

    def _open(self, opening: Opening, commitment: bytes, what: str, digest: bytes, *context: Any) -> None:
        try:
            opening.check(commitment, what, digest, *context)
        except IntegrityError as error:
            error.culprit = self._opened.party
            raise

    def _masked(
        self, name: str, values: Array, opening: Opening, run: int, shape: tuple[int, ...]
    ) -> dict[str, str]:
        owner, found = self._opened.party, {}
        entered = self._receipt_of_run(run).entered
        dealt = next(one.dealt for one in entered if one.run == run)
        frac = self._facts.precision.get("fractional_bits")
        if not isinstance(frac, int):
            raise IntegrityError("the agreement declares no fractional bits")
        step = fp.Step(0, fp.Source(name), (), fp.Type(shape, fp.WIDE, frac), name)
        for evaluator in self._facts.evaluators:
            if evaluator == owner:
                continue
            if dealt != "live":
                found[evaluator] = "not checked: its masks were dealt before the data came"
                continue
            legs, how = self._chain(owner, evaluator, run)
            if not legs:
                found[evaluator] = f"not checked: needs {evaluator}'s receipt, or {owner}'s signed by it"
                continue
            self._check_key(evaluator)
            done = 0
            for first, entries, number in legs:
                done += self._matching(step, values[done:], opening, number, evaluator, first, entries)
            if done != len(values):
                raise IntegrityError(
                    f"what {evaluator} got for input {name!r} does not derive from these values",
                    culprit=owner,
                )
            found[evaluator] = f"what it got derives from these values, {how}"
        return found

    def _matching(
        self,
        step: fp.Step,
        left: Array,
        opening: Opening,
        number: int,
        evaluator: str,
        first: int,
        entries: list[Entry],
    ) -> int:
        """Rows of the input that one inference carried, where a message in it is what they give; else 0."""
        scope = Scope(self._opened.session, number)
        tried: dict[int, bytes | None] = {}
        for at, message in _messages(entries, Phase.ONLINE):
            size = sum(entry.fields[4] for entry in message) - inputs.SIGNATURE_BYTES
            rows, rest = divmod(size, 8 * max(step.type.size, 1))
            if rest or not 0 < rows <= len(left):
                continue
            if rows not in tried:
                tried[rows] = self._message(step, left[:rows], opening, scope)
            content = tried[rows]
            if content is not None and self._same(content, evaluator, first + at, message):
                return rows
        return 0

    def _message(self, step: fp.Step, values: Array, opening: Opening, scope: Scope) -> bytes | None:
        """What the owner sends online: masked values, and the signature that went along."""
        signatures = self._opened.signatures

        def sign(message: bytes) -> bytes:
            return signatures.get(hashlib.sha256(message).hexdigest(), b"")

        seeds = inputs.InputSeeds.of(len(values), opening, scope, step)
        masked = inputs.mask_input(step, fp.encode(values, step.type.frac), seeds, scope, sign)
        return masked.online() if masked.signature else None

    # -- encrypted inputs ------------------------------------------------------------------------

    def _encrypted(self, name: str, values: Array, opening: Opening, run: int) -> dict[str, str]:
        """What the model owner got is the encryption of these values that derives from the opening."""
        owner, peer = self._opened.party, self._facts.model_owner
        if owner == peer:
            return {}
        legs, how = self._chain(owner, peer, run)
        if not legs:
            return {peer: f"not checked: needs {peer}'s receipt, or {owner}'s signed by it"}
        public, witnesses = self._joint_key()
        if not witnesses:
            return {peer: "not checked: needs a receipt of another party that used the joint key"}
        self._check_key(peer)
        packer, parameters = Packer(public), public.parameters
        layout = input_layout(values.shape[1:], parameters.slots)
        given = seeds(opening, self._opened.session, name)
        tried: dict[int, bytes] = {}
        for first, entries, _ in legs:
            for at, message in _messages(entries, Phase.ONLINE):
                size = sum(entry.fields[4] for entry in message)
                level, rest = divmod(size, len(values) * layout.ciphertexts * 16 * parameters.n)
                if rest or not 1 <= level <= parameters.levels:
                    continue
                if level not in tried:
                    data = packer.encrypt_at(layout, level, SCALE, values, given)
                    tried[level] = Message(data).to_bytes()
                if self._same(tried[level], peer, first + at, message):
                    under = f"the joint key that {' and '.join(witnesses)} used"
                    return {peer: f"what it got is these values under {under}, {how}"}
        raise IntegrityError(
            f"what {peer} got for input {name!r} is no encryption of these values under that opening",
            culprit=owner,
        )

    def _joint_key(self) -> tuple[PublicKey, list[str]]:
        """The key that the opening shows, and others whose receipts say that they used it."""
        owner = self._opened.party
        try:
            public = PublicKey.parse(parameters_of(self._facts), self._opened.joint or b"", owner)
        except ProtocolViolation:
            raise IntegrityError("the opening has no joint key of this session", culprit=owner) from None
        digest = public.digest()
        others = {name: one.joint for name, one in self._receipts.items() if one.joint is not None}
        for name, theirs in others.items():
            if theirs != digest:
                raise IntegrityError(f"the opening has another joint key than {name} used", culprit=owner)
        return public, sorted(set(others) - {owner})

    # -- weights ---------------------------------------------------------------------------------

    def weights(self, model: ir.Model) -> dict[str, Any]:
        """Check that the model served had these weights.

        Raises
        ------
        ConfigError
            The opening is not the model owner's, or the model is another.
        IntegrityError
            They were others.
        """
        f, opened = self._facts, self._opened
        if opened.weights is None or opened.party != f.model_owner:
            raise ConfigError("this opening is not the model owner's", hint=f"that is {f.model_owner}")
        if model.architecture.digest() != f.architecture:
            raise ConfigError(
                "this model is not the session's", hint="load it with the options it was sealed with"
            )
        opening = Opening(opened.weights)
        self._open(opening, f.weights, "weights", digest_of_weights(model), f.architecture)
        return {"weights": "the commitment opens to these", "masked": self._masked_weights(model, opening)}

    def _masked_weights(self, model: ir.Model, opening: Opening) -> dict[str, str]:
        f, owner = self._facts, self._opened.party
        if f.backend != Mpc.name:
            return {}  # weights under encryption never leave their owner
        party = dict(zip(roles.EVALUATORS, f.evaluators, strict=True)) | {roles.HELPER: f.helper or ""}
        exact = roles.needs_exact(f.evaluators, f.helper, f.receivers.values())
        program = compile_program(model.architecture, exact=exact)
        owners = {name: who for name, (who, _) in f.inputs.items()}
        table = Table(party, owners, f.receivers, model.architecture, self._opened.session)
        player = ModelOwner(program, table, Private(_no_signature, _no_check, model, weights=opening))
        sends = [one for one in player.setup() if isinstance(one, Send)]
        found = {}
        for peer in dict.fromkeys(party.values()):
            if peer == owner:
                continue
            legs, how = self._chain(owner, peer, None)
            if not legs:
                found[peer] = f"not checked: needs {peer}'s receipt, or {owner}'s signed by it"
                continue
            self._check_key(peer)
            messages = [
                (first + at, message)
                for first, entries, _ in legs
                for at, message in _messages(entries, Phase.SETUP)
            ]
            if not messages:
                found[peer] = "not checked: it got the weights in an earlier join"
                continue
            for send in (one for one in sends if party[one.to] == peer):
                data = bytes(send.data)
                if not any(
                    message[0].fields[3] & _STEP == send.step and self._same(data, peer, at, message)
                    for at, message in messages
                ):
                    raise IntegrityError(
                        f"what {peer} got in step {send.step} does not derive from these weights",
                        culprit=owner,
                    )
            found[peer] = f"what it got derives from these weights, {how}"
        return found

    # -- chains ----------------------------------------------------------------------------------

    def _chain(
        self, owner: str, peer: str, run: int | None
    ) -> tuple[list[tuple[int, list[Entry], int]], str]:
        """Legs of the chain from owner to peer, of one run or all: first index, entries, inference.

        From the peer's receipt; or from the owner's, where the peer signed what it got.
        """
        for holder, sent in ((peer, False), (owner, True)):
            one = self._receipts.get(holder)
            if one is None:
                continue
            other = owner if holder == peer else peer
            places = legs_of(one, run) if run is not None else list(enumerate(one.legs))
            if sent and not all(peer in leg.peers for _, leg in places):
                continue
            starts = _starts(one, other, sent=sent)
            found = [(starts[k], list(Entry.split(_side(leg, sent).get(other, b""))), k) for k, leg in places]
            return found, f"by {peer}'s receipt" if holder == peer else f"as {peer} signed"
        return [], ""

    def _check_key(self, peer: str) -> None:
        """The key shown is the one that both signed for."""
        shown = self._opened.keys.get(peer)
        for one, other in ((peer, self._opened.party), (self._opened.party, peer)):
            receipt = self._receipts.get(one)
            if receipt is not None and (
                shown is None or not hmac.compare_digest(TagKey(shown).check(), receipt.keys[other])
            ):
                raise IntegrityError(
                    f"the opening has another key with {peer} than was signed for", culprit=self._opened.party
                )

    def _same(self, content: bytes, peer: str, first: int, message: list[Entry]) -> bool:
        """Whether a message in the chain to a peer had this content."""
        key, view = TagKey(self._opened.keys[peer]), memoryview(content)
        pieces = [view[at : at + CHUNK] for at in range(0, max(len(view), 1), CHUNK)]
        if len(pieces) != len(message):
            return False
        for k, (piece, entry) in enumerate(zip(pieces, message, strict=True)):
            kind, phase, channel, step, _, tag = entry.fields
            try:
                frame = Frame(Kind(kind), phase, channel, step, piece)
            except ValueError:
                return False
            if not hmac.compare_digest(key.tag(first + k, self._opened.party, frame), tag):
                return False
        return True


def parameters_of(facts: Facts) -> Parameters:
    """Ring and levels of a `ckks` session, as its agreement declares them."""
    n, levels = facts.precision.get("ring_degree"), facts.precision.get("levels")
    if not isinstance(n, int) or not isinstance(levels, int):
        raise IntegrityError("the agreement declares no ring")
    return Parameters(n, levels)


def _side(leg: Leg, sent: bool) -> dict[str, bytes]:
    return leg.sent if sent else leg.received


def _starts(one: Receipt, other: str, *, sent: bool) -> list[int]:
    """Index in its chain of the first message of each leg."""
    marks = [mark.count for mark in one.marks(other, sent=sent)]
    return [0, *marks[:-1]]


def _messages(entries: list[Entry], phase: Phase) -> Iterator[tuple[int, list[Entry]]]:
    """Players' messages of a phase: the place of the first piece, and all pieces."""
    at = 0
    for key, group in groupby(entries, key=lambda entry: entry.fields[:4]):
        pieces = list(group)
        if key[:2] == (Kind.DATA, phase):
            yield at, pieces
        at += len(pieces)


def _rows(name: str, values: npt.NDArray[Any], shape: tuple[int, ...]) -> Array:
    """As the run took them: float64, batch first."""
    try:
        array = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"input {name!r} is no array of numbers") from None
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape:
        raise InputError(f"input {name!r} has shape {array.shape}, the session's is (batch, *{shape})")
    return array


def _no_signature(message: bytes) -> bytes:
    raise PrivinferError("an audit signs nothing")


def _no_check(party: str, message: bytes, signature: bytes) -> None:
    raise PrivinferError("an audit plays no protocol")
