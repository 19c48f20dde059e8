"""What goes wrong in which session: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos import casts

DEADLINE, CONNECT, ATTEMPTS = 1.5, 3.0, 2
# Masks dealt live; from the stores; a join that fills the stores first; threshold CKKS, three of five.
KINDS = ("live", "kept", "deal", "ckks")
WEIGHTS = (5, 4, 2, 3)
SPAN_S = 1.6  # about as long as a session takes that nothing happens to


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes
    ----------
    what : str
        kill, stop, reset, delay or full.
    victim : str
        Party it happens to; resets and delays happen to the connections it was called on.
    at : float
        Seconds after the start.
    lasts : float
        Seconds until it is undone: a stopped party goes on, a killed one is started anew (0: never), a line
        is fast again.
    size : float
        Seconds a line delays, or bytes a file may have.
    """

    what: str
    victim: str
    at: float
    lasts: float = 0.0
    size: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One session."""

    number: int
    kind: str
    rows: int
    faults: tuple[Fault, ...]

    def plain(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def plans(count: int, seed: int) -> list[Plan]:
    """So many sessions."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        kind = draw.choices(KINDS, WEIGHTS)[0]
        faults = tuple(_fault(draw, kind) for _ in range(draw.choices((0, 1, 2, 3), (1, 6, 3, 1))[0]))
        found.append(Plan(number, kind, draw.choice((1, 3)) if kind == "live" else 1, faults))
    return found


def _fault(draw: random.Random, kind: str) -> Fault:
    at = round(draw.uniform(0.0, SPAN_S), 3)
    what = draw.choices(("kill", "stop", "reset", "delay", "full"), (5, 3, 3, 2, 2 if kind != "live" else 0))[
        0
    ]
    names = casts.of(kind)[1].names
    victim = draw.choice(names)
    match what:
        case "kill":
            return Fault(what, victim, at, lasts=draw.choice((0.0, 0.1, 0.1, 0.5)))
        case "stop":
            return Fault(what, victim, at, lasts=round(draw.choice((0.3, 1.0, 2.5)) * DEADLINE, 3))
        case "full":
            return Fault(what, victim, 0.0, size=draw.choice((0, 4096, 20_000, 100_000)))
    listening = draw.choice(names[:-1])  # the last one dials all others
    if what == "reset":
        return Fault(what, listening, at)
    return Fault(what, listening, at, lasts=draw.choice((0.5, 2.0)), size=draw.choice((0.02, 0.2, 1.0)))
