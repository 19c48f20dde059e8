"""Which choices meet a user's wishes, in which order, or by how much they miss them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privinfer.plan.estimate import Choice


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a run may take.

    Attributes
    ----------
    within : float or None
        Seconds of a run, offline and online.
    price : float or None
        Of a run.
    memory : int or None
        Bytes at any party.
    no_helper : bool
        Nobody deals.
    """

    within: float | None = None
    price: float | None = None
    memory: int | None = None
    no_helper: bool = False

    def misses(self, choice: Choice) -> dict[str, float]:
        """How far a choice is off: each wish not met, and by what factor (infinity where none would do)."""
        found: dict[str, float] = {}
        for name, wanted, there in (
            ("within", self.within, choice.run_seconds),
            ("price", self.price, choice.price),
            ("memory", self.memory, choice.memory),
        ):
            if wanted is not None and there > wanted:
                found[name] = there / wanted if wanted > 0 else float("inf")
        if self.no_helper and choice.helper:
            found["no helper"] = float("inf")
        return found


@dataclass(frozen=True, slots=True)
class Ranked:
    """A choice with what it misses."""

    choice: Choice
    misses: dict[str, float]


def rank(choices: Sequence[Choice], wishes: Wishes) -> list[Ranked]:
    """Possible choices, best first: those that meet all wishes by seconds, then those that miss least."""
    found = [Ranked(c, wishes.misses(c)) for c in choices if c.reason is None]
    return sorted(
        found,
        key=lambda r: (
            len(r.misses) > 0,
            max(r.misses.values(), default=1.0),
            r.choice.run_seconds,
            r.choice.price,
        ),
    )


def verdict(ranked: Sequence[Ranked], wishes: Wishes, currency: str = "$") -> str:
    """One sentence: what to take, or which wish cannot be met and by how much."""
    if not ranked:
        return "nothing can run this model with these parties"
    best = ranked[0]
    c = best.choice
    if not best.misses:
        return f"take {c.backend}: {c.run_seconds:.3g} s and {currency}{c.price:.2g} a run"
    said = []
    pool = [r for r in ranked if "no helper" not in r.misses] or list(ranked)
    if all("no helper" in r.misses for r in ranked):
        said.append("without a helper nothing runs this model")
    if wishes.within is not None and (least := min(r.choice.run_seconds for r in pool)) > wishes.within:
        said.append(f"at least {least:.3g} s, {least - wishes.within:.3g} s more than wished")
    if wishes.price is not None and (least := min(r.choice.price for r in pool)) > wishes.price:
        more = least - wishes.price
        said.append(f"at least {currency}{least:.2g}, {currency}{more:.2g} more than wished")
    if wishes.memory is not None and (least := min(r.choice.memory for r in pool)) > wishes.memory:
        more = (least - wishes.memory) / 1e6
        said.append(f"at least {least / 1e6:.0f} MB of memory, {more:.0f} MB more than wished")
    if not said:  # each wish can be met, but not by one choice
        missed = ", ".join(f"{name} by a factor of {by:.3g}" for name, by in best.misses.items())
        said.append(f"no choice meets all wishes at once; {c.backend} misses {missed}")
    return "; ".join(said)
