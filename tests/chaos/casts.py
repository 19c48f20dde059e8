"""Who plays in a chaos session: six parties and `mpc`, or key holders and `ckks` on a small ring."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from privinfer.graph import reference
from tests.adversarial import ckks_stage, stage
from tests.support import simulate_ckks


@dataclass(frozen=True)
class Cast:
    """One kind of session.

    Attributes
    ----------
    names : tuple of str
    keepers : set of str
        Who has a store.
    model_owner, receiver, output : str
    model, rows, bound, manifest : callable
        The model; inputs by party of (rows, seed); largest honest error; the session file.
    around : callable
        What a party's process is in meanwhile.
    """

    names: tuple[str, ...]
    keepers: frozenset[str]
    model_owner: str
    receiver: str
    output: str
    model: Callable[[], Any]
    rows: Callable[[int, int], dict[str, Any]]
    bound: Callable[[], float]
    manifest: Callable[..., Any]
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def wanted(self, count: int, seed: int) -> np.ndarray:
        """What the receiver should get."""
        inputs = {k: v for own in self.rows(count, seed).values() for k, v in own.items()}
        return reference.run(self.model(), inputs)[self.output]


def _ckks_bound() -> float:
    with simulate_ckks.small_ring():
        plan = ckks_stage.roles.planned(ckks_stage.SHALLOW, len(ckks_stage.HOLDERS), 3)
        return ckks_stage.roles.declared_error(plan, plan.outputs[0])


CASTS = {
    "mpc": Cast(
        stage.NAMES,
        frozenset({stage.E1, stage.E2, *stage.INPUTS.values()}),
        stage.E1,
        "patient",
        "risk",
        stage.model,
        stage.rows,
        lambda: stage.model().architecture.precision.error_bound,
        stage.manifest,
    ),
    "ckks": Cast(
        ckks_stage.NAMES,
        frozenset(ckks_stage.NAMES),
        ckks_stage.MODEL_OWNER,
        ckks_stage.RECEIVER,
        "y",
        ckks_stage.model,
        ckks_stage.rows,
        functools.cache(_ckks_bound),
        lambda deadline, **changes: ckks_stage.manifest(deadline=deadline, **changes),
        simulate_ckks.small_ring,
    ),
}


def of(kind: str) -> tuple[str, Cast]:
    """Name and cast of a kind of session."""
    name = "ckks" if kind == "ckks" else "mpc"
    return name, CASTS[name]
