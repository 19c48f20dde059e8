"""What a step costs, as formulas of shapes: the planner adds them up, a test holds them to the wire."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Rounds and payload bytes of a step.

    Attributes
    ----------
    rounds : int
        Online one-way messages on the longest path (both evaluators send at once).
    opened : int
        Bytes each evaluator sends the other online.
    dealt : tuple of int
        Bytes that the helper deals E1 and E2 offline.
    common : int
        How many of these are the same for both: on a slow line each evaluator passes a half on.
    asked : int
        Bytes each evaluator sends the helper online.
    answered : tuple of int
        Bytes the helper sends E1 and E2 online.
    encrypted : int
        Bytes each evaluator sends the model owner online, where it computes on ciphertexts.
    halves : int
        Bytes of ciphertexts' halves the model owner sends each key holder, and of shares it gets back.
    products : int
        Bytes of a share of the products that model owner and key holders hand on to an evaluator.
    """

    rounds: int = 0
    opened: int = 0
    dealt: tuple[int, int] = (0, 0)
    common: int = 0
    asked: int = 0
    answered: tuple[int, int] = (0, 0)
    encrypted: int = 0
    halves: int = 0
    products: int = 0

    def total(self) -> int:
        """Bytes of all parties together, offline and online."""
        return sum(self.dealt) + 2 * self.asked + sum(self.answered) + 2 * self.opened
