"""The shape of every gate: dealt by the helper, prepared by an evaluator, evaluated once.

A gate's `evaluate` is a generator. It yields a Blinded share for each opening and is sent the opened wire
back; or ToHelper, and is sent None, and then FromHelper, and is sent the helper's answer; or ToModelOwner,
and then Wait as long as others are at work, and then FromProducts. The evaluator advances all gates that are
ready together, so independent branches share rounds.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from privinfer.errors import IntegrityError
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskShare
from privinfer.protocols.randomness import Secret


@dataclass(frozen=True, slots=True, repr=False)
class ToHelper(Secret):
    """What an evaluator yields first: send this to H and to nobody else."""

    data: bytes | memoryview

    def __repr__(self) -> str:
        return f"ToHelper({len(self.data)} bytes, hidden)"


@dataclass(frozen=True, slots=True)
class FromHelper:
    """What an evaluator yields next: resume with H's answer of this size; with b"" where it is 0."""

    size: int


@dataclass(frozen=True, slots=True)
class ToModelOwner:
    """Send this, which is encrypted, to the model owner; resumes with None."""

    data: bytes

    def __repr__(self) -> str:
        return f"ToModelOwner({len(self.data)} bytes)"


@dataclass(frozen=True, slots=True)
class Wait:
    """Let one message between others pass; resumes with None."""


@dataclass(frozen=True, slots=True)
class FromProducts:
    """Resume with what each of these roles sends, a message of this size each."""

    sources: tuple[str, ...]
    size: int


Action: TypeAlias = Blinded | ToHelper | FromHelper | ToModelOwner | Wait | FromProducts
Rounds: TypeAlias = Generator[Action, Any, Masked]


class Gate(Secret):
    """An evaluator's prepared half of one gate.

    Attributes
    ----------
    evaluator : int
        0 for E1, 1 for E2.
    mask : MaskShare
        Half of the mask of the wire that comes out.
    """

    __slots__ = ("_used", "evaluator", "mask")

    def __init__(self, evaluator: int, mask: MaskShare) -> None:
        self.evaluator = evaluator
        self.mask = mask
        self._used = False

    def start(self) -> None:
        """Refuse a second use: what was dealt serves one value."""
        if self._used:
            raise IntegrityError("a gate's correlated randomness would be used twice")
        self._used = True

    def evaluate(self, x: Masked) -> Rounds:
        """Run the online half on the masked input; a gate of two inputs (product.py) takes a second."""
        raise NotImplementedError
