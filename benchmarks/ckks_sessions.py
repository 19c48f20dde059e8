"""Whole inferences under `ckks` for benchmarks/ckks.py: sessions of processes, and evaluation alone."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Queue
from typing import Any

import numpy as np

import privinfer
from benchmarks import workloads
from benchmarks.systems import ROOT
from privinfer.backends.ckks.evaluate import Evaluation, EvaluationKeys
from privinfer.backends.ckks.plan import Plan, make_plan
from privinfer.graph import ir, reference
from privinfer.runtime import local, pipes
from privinfer.session import manifest as mf
from tests.support.ckks_oracle import Oracle

HOLDERS = 4  # three owners and the patient's agent
Rows = dict[str, workloads.Array]


@dataclass(frozen=True)
class Case:
    """A polynomial model with rows to run it on."""

    name: str
    model: ir.Model
    rows: Rows
    single: int  # the row that is run alone

    def some(self, rows: slice) -> Rows:
        """These rows of every input."""
        return {k: v[rows] for k, v in self.rows.items()}

    def clear(self, rows: Rows) -> workloads.Array:
        """The same polynomial model in float64."""
        found = reference.run(self.model, {k: v.astype(np.float64) for k, v in rows.items()})
        return np.asarray(next(iter(found.values())))


def demo(patients: int) -> Case:
    """The demonstration's model and its test patients."""
    folder = ROOT / "examples" / "cohort"
    spec = importlib.util.spec_from_file_location("cohort", folder / "cohort.py")
    assert spec is not None  # noqa: S101 - the file is part of the repository
    assert spec.loader is not None  # noqa: S101
    cohort = importlib.util.module_from_spec(spec)
    sys.modules["cohort"] = cohort
    spec.loader.exec_module(cohort)
    validation, test = cohort.load("validation").inputs(), cohort.load("test").inputs()
    model = privinfer.from_onnx(folder / "risk-polynomial.onnx", calibration=validation)
    return Case("demo", model, {k: v[:patients] for k, v in test.items()}, 0)


def sarah() -> Case:
    """`sarah` with polynomials of degree 3 for its ReLUs, on ranges its own rows were seen in."""
    work = workloads.load("sarah")
    rows = work.inputs(64)
    model, _ = workloads.as_model(work, rows)
    wide = {k: v.astype(np.float64) for k, v in rows.items()}
    polynomial, _ = privinfer.to_polynomial(model, wide, degree=3, epochs=0)
    return Case("sarah", polynomial, wide, 0)


# -- sessions --------------------------------------------------------------------------------------


def session(case: Case, runs: list[Rows], deadline: float = 120.0) -> list[dict[str, Any]]:
    """One session with every party a process on the loopback, as `run_local` starts them; all runs in it.

    Returns
    -------
    list of dict
        For each run its output, the error, seconds by phase (the slowest party's) and bytes by party and
        phase; the first has those of the set-up too.
    """
    owners = workloads.STORY
    own = {party: {k for k, o in owners.items() if o == party} for party in owners.values()}
    cast = local._plan_cast(
        case.model, {p: dict.fromkeys(ks) for p, ks in own.items()}, "patient", "startup", (), None, deadline
    )
    cast = local._with_holders(cast, None, None, mf.NONLINEAR[0])
    heard: Queue[tuple[str, dict[str, Any] | None]] = Queue()
    workers: dict[str, local._Worker] = {}
    found: list[dict[str, dict[str, Any]]] = [{} for _ in runs]
    graceful = 0.0
    try:
        for name in cast.names:
            workers[name] = local._Worker(name, heard, None)
        greetings = local._collect(heard, set(cast.names), "certificate", None)
        parties = [
            mf.Party(n, "127.0.0.1", greetings[n]["port"], greetings[n]["certificate"]) for n in cast.names
        ]
        manifest = cast.manifest("ckks", case.model, parties)
        for name, one in workers.items():
            packed = [pipes.pack_inputs({k: r[k] for k in own.get(name, ())}) for r in runs]
            model = pipes.pack_model(case.model) if name == cast.model_owner else None
            one.tell({"manifest": manifest.raw, "model": model, "runs": packed})
        for this in found:
            while len(this) < len(cast.names):
                name, message = heard.get()
                if message is None:
                    raise RuntimeError(f"the process of {name} ended")
                if "error" in message:
                    pipes.raise_described(message["error"])
                if "report" in message:
                    next(f for f in found if name not in f)[name] = message
        graceful = 2.0
    finally:
        for one in workers.values():
            one.end(graceful)
    return [_told(case, rows, this) for rows, this in zip(runs, found, strict=True)]


def _told(case: Case, rows: Rows, messages: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    outputs = {k: v for m in messages.values() for k, v in pipes.unpack_arrays(m["outputs"]).items()}
    output = np.asarray(next(iter(outputs.values())))
    clear = case.clear(rows)
    reports = {name: m["report"] for name, m in messages.items()}
    phases = ("setup", "offline", "online")
    return {
        "output": output.tolist(),
        "error": float(np.abs(output - clear).max()),
        "same_decisions": int((decisions(output) == decisions(clear)).sum()),
        "rows": len(output),
        "seconds": {p: max(r["seconds"][p] for r in reports.values()) for p in phases},
        "bytes": {
            name: {p: sum(r["bytes"]["sent"].get(p, {}).values()) for p in phases}
            for name, r in reports.items()
        },
        "peak_rss_bytes": {name: r["peak_rss_bytes"] for name, r in reports.items()},
        "rounds": sum(next(iter(reports.values()))["online_rounds"].values()),
    }


def decisions(outputs: workloads.Array) -> workloads.Array:
    """The sign of one logit, the larger of several."""
    return np.asarray(outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1))


# -- the model owner alone ----------------------------------------------------------------------------

STEPS = ("_linear", "_activate", "_product", "_request", "_open")  # of an evaluation, timed one by one


class Alone:
    """A model owner's evaluation, with keys and refreshes of a secret that only this benchmark knows."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.plan: Plan = make_plan(case.model.architecture, HOLDERS, HOLDERS)
        p = self.plan.parameters
        self.oracle = Oracle(p)
        galois = self.oracle.at(self.plan.linear_levels).galois(self.plan.rotations)
        keys = EvaluationKeys(self.oracle.public, self.oracle.relinearisation, galois)
        self.evaluation = Evaluation(self.plan, case.model, keys)
        at = time.perf_counter()
        self.evaluation.prepare()
        self.prepare_seconds = time.perf_counter() - at
        self.spent: dict[str, float] = {}
        for kind in STEPS:
            self._watch(kind)
        row = case.some(slice(case.single, case.single + 1))
        self.expected = case.clear(row)[0]
        self.given = {
            s.name: [[self.oracle.encrypt(v, s.level) for v in s.layout.pack(row[s.name][0].reshape(-1))]]
            for s in self.plan.inputs
        }

    def _watch(self, kind: str) -> None:
        """Add up the seconds of one kind of step, and of each linear step by its node."""
        inner = getattr(Evaluation, kind)

        def timed(step: Any, *rest: Any) -> Any:
            at = time.perf_counter()
            result = inner(self.evaluation, step, *rest)
            took = time.perf_counter() - at
            label = f"linear {step.node}" if kind == "_linear" else kind[1:]
            self.spent[label] = self.spent.get(label, 0.0) + took
            return result

        self._timed = {**getattr(self, "_timed", {}), kind: timed}

    def run(self) -> dict[str, Any]:
        """One row; seconds of the evaluator's own work, refreshes by the oracle not counted."""
        self.spent = {}
        evaluation = _Timed(self.evaluation, self._timed)
        seconds, at = 0.0, time.perf_counter()
        work = evaluation.run(self.given)
        try:
            request = next(work)
            while True:
                seconds += time.perf_counter() - at
                fresh = [
                    self.oracle.refresh(c, t.span.high)
                    for c, t in zip(request.ciphertexts, request.targets, strict=True)
                ]
                at = time.perf_counter()
                request = work.send(fresh)
        except StopIteration as done:
            seconds += time.perf_counter() - at
            outputs = done.value
        (one,) = self.plan.outputs
        slots = np.stack([self.oracle.decrypt(c).real for c in outputs[one.name][0]])
        got = slots[one.layout.ciphertext, one.layout.position]
        return {
            "seconds": seconds,
            "steps": dict(self.spent),
            "error": float(np.abs(got - self.expected.reshape(-1)).max()),
        }


class _Timed(Evaluation):
    """The same evaluation with watched steps."""

    __slots__ = STEPS

    def __init__(self, inner: Evaluation, timed: Mapping[str, Any]) -> None:
        for name in Evaluation.__slots__:
            object.__setattr__(self, name, getattr(inner, name))
        for name, method in timed.items():
            object.__setattr__(self, name, method)
