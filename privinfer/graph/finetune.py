"""Fine-tuning of a polynomial model's weights towards the model it came from: distillation in torch.

Nothing here draws random numbers: rows are put in order by hashes of a seed, so the same rows give the same
weights on the same machine, and no generator that others rely on is touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported
from privinfer.graph import ir, torch_run

Array = npt.NDArray[np.float64]
Order = npt.NDArray[np.intp]

BATCH = 64
KEEP = 0.75  # of a polynomial's range: what lies further out is pulled back
PULL = 10.0
STEEPEST = 1.0  # norm of a gradient that is followed
SMALLEST = 1e-3


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is tuned on.

    Attributes
    ----------
    inputs, targets : dict of ndarray
        Rows, and what the original model answers there, by output.
    labels : dict of ndarray
        Classes of some outputs' rows, as integers.
    logits : set of str
        Labelled outputs that are logits; the others are probabilities.
    """

    inputs: Mapping[str, Array]
    targets: Mapping[str, Array]
    labels: Mapping[str, npt.NDArray[np.int64]]
    logits: frozenset[str]


def shuffled(count: int, seed: int, turn: int) -> Order:
    """An order of `count` rows that follows from two numbers."""
    digest = hashlib.shake_256(f"privinfer rows {seed} {turn}".encode()).digest(8 * count)
    return np.argsort(np.frombuffer(digest, dtype="<u8"), kind="stable")


def tune(
    architecture: ir.Architecture,
    parameters: ir.Parameters,
    task: Task,
    *,
    epochs: int,
    seed: int,
    rate: float,
) -> ir.Parameters:
    """Weights that bring the outputs closer to their targets, and keep values inside polynomials' ranges.

    Parameters
    ----------
    architecture, parameters
        The polynomial model; not changed.
    task : Task
        Rows to train on.
    epochs : int
        How often each row is seen.
    seed : int
        Of the order of rows.
    rate : float
        Adam's largest step; it falls to nothing along half a cosine.

    Returns
    -------
    dict of dict of ndarray
        float64.

    Raises
    ------
    ModelUnsupported
        Training diverged.
    """
    torch = torch_run.load()
    weights = {
        node: {k: torch.tensor(v, dtype=torch.float32).requires_grad_() for k, v in own.items()}
        for node, own in parameters.items()
    }
    leaves = [v for own in weights.values() for v in own.values()]
    count = len(next(iter(task.inputs.values())))
    if not (epochs and leaves and count):
        return parameters
    inputs = {k: torch.from_numpy(np.asarray(v, dtype=np.float32)) for k, v in task.inputs.items()}
    targets = {k: torch.from_numpy(np.asarray(v, dtype=np.float32)) for k, v in task.targets.items()}
    spread = {k: max(float(v.std()), SMALLEST) for k, v in task.targets.items()}
    labels = {k: torch.from_numpy(np.asarray(v, dtype=np.int64)) for k, v in task.labels.items()}
    adam = torch.optim.Adam(leaves, lr=rate)
    for step, rows in _steps(count, epochs, seed):
        for group in adam.param_groups:
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step))
        there = torch.from_numpy(rows)
        pulls: list[Any] = []

        def watch(_: str, t: Any, pulls: list[Any] = pulls) -> None:
            pulls.append(torch.relu(t.abs() - KEEP).square().flatten(1).sum(1).mean())

        found = torch_run.run(torch, architecture, weights, {k: v[there] for k, v in inputs.items()}, watch)
        loss = PULL * sum(pulls)
        for name, y in found.items():
            loss = loss + ((y - targets[name][there]) / spread[name]).square().mean()
            if name in labels:
                loss = loss + _labelled(torch, y, labels[name][there], name in task.logits)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, STEEPEST)
        adam.step()
    if not torch_run.finite(weights):
        raise ModelUnsupported("the fine-tuning diverged", hint="pass a smaller rate, or a higher degree")
    return {
        node: {k: v.detach().double().numpy().copy() for k, v in own.items()} for node, own in weights.items()
    }


def _steps(count: int, epochs: int, seed: int) -> Iterator[tuple[float, Order]]:
    """How far training has come, from 0 to 1, and the rows of the next step."""
    starts = range(0, count, BATCH)
    for epoch in range(epochs):
        order = shuffled(count, seed, epoch + 1)
        for k, at in enumerate(starts):
            yield (epoch + k / len(starts)) / epochs, order[at : at + BATCH]


def _labelled(torch: Any, y: Any, labels: Any, logits: bool) -> Any:
    """Cross entropy of logits, squared error of a probability."""
    f = torch.nn.functional
    if y[0].numel() == 1:
        y, wanted = y.flatten(), labels.flatten().to(y.dtype)
        return f.binary_cross_entropy_with_logits(y, wanted) if logits else (y - wanted).square().mean()
    return f.cross_entropy(y.reshape(-1, y.shape[-1]), labels.flatten())
