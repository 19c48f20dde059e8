"""ONNX's own node tests, one operator each: what privinfer imports gives their answers, or says no by name.

    python -m tests.unit.test_onnx_conformance

writes the table of docs/operators.md anew.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privinfer
from privinfer.backends import plain
from privinfer.errors import PrecisionError, PrivinferError
from privinfer.graph import ir, reference

onnx = pytest.importorskip("onnx")

DOC = Path(__file__).parents[2] / "docs" / "operators.md"
BEGIN, END = "<!-- conformance: begin -->\n", "<!-- conformance: end -->\n"
FIRST_OPSET = 13
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)

# inputs of an operator that a model holds as weights, from this position on
WEIGHTS = {
    "BatchNormalization": 1, "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "GroupNormalization": 1, "GRU": 1,
    "InstanceNormalization": 1, "LayerNormalization": 1, "LSTM": 1, "PRelu": 1, "Pad": 1, "Pow": 1,
    "Resize": 1, "RMSNormalization": 1, "RNN": 1, "Upsample": 1, "Clip": 1, "Dropout": 1,
    "RotaryEmbedding": 1,
}  # fmt: skip
# what a node's function gets, for those that need to be told
DECLARED: dict[str, Any] = {
    "Div": lambda xs, y: xs[-1],
    "GlobalLpPool": lambda xs, y: y**2,
    "LpPool": lambda xs, y: y**2,
    "ReduceL2": lambda xs, y: y**2,
    "ReduceLogSum": lambda xs, y: np.exp(y),
    "LpNormalization": lambda xs, y: np.abs(xs[0]).sum(axis=-1),
}
# about which the importers' design, and not a missing operator, says no
SAMPLES = ("batch", "axis 0", "samples")
KINDS = (
    "only floating-point tensors",
    "only tensors of numbers",
    "without a batch axis",
    "does not depend on any input",
    "empty or too large",
    "training",
    "random",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one case; `why` where it was refused or does not apply."""

    name: str
    op: str
    status: str  # passed, refused, other, wrong
    why: str = ""
    model: ir.Model | None = None
    inputs: dict[str, np.ndarray] | None = None


@functools.cache
def collected() -> tuple[Any, ...]:
    """All node tests of one operator, of the default domain and of opsets that matter."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = collect_testcases(None)
    kept = []
    for case in every:
        opsets = {o.domain: o.version for o in case.model.opset_import}
        if len(case.model.graph.node) == 1 and opsets.get("", 0) >= FIRST_OPSET:
            node = case.model.graph.node[0]
            if not node.domain and not any(a.HasField("g") for a in node.attribute):
                kept.append(case)
    return tuple(kept)


def is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "fiub"


def variants(case: Any) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """The model with its weights inside and the other inputs private; then with one private input alone."""
    model, (given, _) = case.model, case.data_sets[0]
    names = [i.name for i in model.graph.input]
    node = model.graph.node[0]
    first = WEIGHTS.get(node.op_type, 99)
    position = {name: k for k, name in reversed(list(enumerate(node.input)))}
    arrays = {n: np.asarray(v) for n, v in zip(names, given, strict=True)}
    batch = next(iter(arrays.values())).shape[:1]
    private = [
        n
        for n, v in arrays.items()
        if v.dtype.kind == "f"
        and v.ndim
        and v.shape[:1] == batch
        and position.get(n, 0) < first
        and not (node.op_type == "Attention" and position.get(n) == 3)  # the mask
    ]
    tries = [private] + ([[private[0]], [private[-1]]] if len(private) > 1 else [])
    for chosen in tries:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        del changed.graph.input[:]
        changed.graph.input.extend(i for i in model.graph.input if i.name in chosen)
        changed.graph.initializer.extend(
            onnx.numpy_helper.from_array(v, n) for n, v in arrays.items() if n not in chosen
        )
        yield changed, {n: arrays[n].astype(np.float64) for n in chosen}


def ends(x: np.ndarray) -> tuple[float, float]:
    return float(x.min()), float(x.max()) if x.max() > x.min() else float(x.min()) + 1.0


def check(case: Any) -> Outcome:
    """Import and run one case."""
    node = case.model.graph.node[0]
    told = functools.partial(Outcome, case.name, node.op_type)
    inputs, outputs = case.data_sets[0]
    if not inputs or not all(map(is_number, inputs)) or not all(map(is_number, outputs)):
        return told("other", "no tensors of numbers")
    if np.asarray(inputs[0]).dtype.kind != "f":
        return told("other", "its input holds no floating-point numbers")
    if not all(np.isfinite(x).all() and np.size(x) for x in inputs if np.asarray(x).dtype.kind == "f"):
        return told("other", "numbers that are not finite, or none at all")
    why = ""
    for proto, feeds in variants(case):
        if not feeds:
            return told("other", "no input has a batch axis")
        try:
            model = load(proto, feeds, node, outputs)
        except PrivinferError as e:
            why = why or e.message
            continue
        wrong = differs(model, feeds, proto, outputs, case.rtol)
        if wrong:
            return told("wrong", wrong)
        return told("passed", "", model, feeds)
    apart = any(s in why for s in SAMPLES) and "never" in why
    return told("other" if apart or any(k in why for k in KINDS) else "refused", why)


def load(proto: Any, feeds: dict[str, np.ndarray], node: Any, outputs: list[Any]) -> ir.Model:
    ranges = {n: ends(x) for n, x in feeds.items()}
    try:
        return declared(proto, ranges)
    except PrivinferError as e:
        if "more than one result" in e.message:  # as models use these: the first result alone
            del proto.graph.output[1:]
            return load(proto, feeds, node, outputs)
        if "declare what goes in" not in e.message or node.op_type not in DECLARED:
            raise
    goes_in = DECLARED[node.op_type](list(feeds.values()), np.asarray(outputs[0], dtype=np.float64))
    low, high = ends(goes_in)
    name = node.name or node.output[0]
    return declared(proto, {**ranges, name: (low - 0.01 * abs(low), high + 0.01 * abs(high))})


def declared(proto: Any, ranges: dict[str, tuple[float, float]]) -> ir.Model:
    try:
        return privinfer.from_onnx(proto, ranges)
    except PrecisionError:
        return privinfer.from_onnx(proto, ranges, comparison_bits=44)


def differs(
    model: ir.Model, feeds: dict[str, np.ndarray], proto: Any, outputs: list[Any], rtol: float
) -> str:
    """What is wrong, if anything: reference against expected answer, fixed point against reference."""
    names = [o.name for o in model.architecture.outputs]
    exact, fixed = reference.run(model, feeds), plain.run(model, feeds)
    bound = model.architecture.precision.error_bound
    assert bound is not None
    shown = [o.name for o in proto.graph.output]
    half = any(i.type.tensor_type.elem_type == FLOATS[-1] for i in proto.graph.input)
    for name in names:
        want = np.asarray(outputs[shown.index(name)]).astype(np.float64)
        if exact[name].shape != want.shape:
            return f"{name} has shape {exact[name].shape} instead of {want.shape}"
        scale = np.maximum(np.maximum(1.0, np.abs(want)) * (5e-3 if half else 2e-5), rtol * np.abs(want))
        if not (np.abs(exact[name] - want) <= scale).all():
            return f"{name} is off by {np.abs(exact[name] - want).max():g} in float64"
        if not (np.abs(fixed[name] - exact[name]) <= bound + 1e-6).all():
            return f"{name} is off by {np.abs(fixed[name] - exact[name]).max():g}, more than {bound:g}"
    return ""


@functools.cache
def outcomes() -> tuple[Outcome, ...]:
    return tuple(map(check, collected()))


def mpc_cases() -> tuple[str, ...]:
    """Names of passing cases, the smallest of each operator: for tests among several processes."""
    best: dict[str, tuple[int, str]] = {}
    for o in outcomes():
        if o.status == "passed" and o.model is not None and o.model.architecture.nodes:
            size = sum(int(np.prod(s)) for s in o.model.architecture.shapes().values())
            best[o.op] = min(best.get(o.op, (size, o.name)), (size, o.name))
    return tuple(name for _, name in sorted(best.values()))


def outcome(name: str) -> Outcome:
    """One case by its name."""
    return check(next(c for c in collected() if c.name == name))


def table() -> str:
    """The table of docs/operators.md."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for o in outcomes():
        counts[o.op][o.status] += 1
        if o.status == "refused":
            reasons[o.op][o.why.split("): ", 1)[-1]] += 1
    total = Counter(o.status for o in outcomes())
    lines = [
        f"onnx {onnx.__version__}: of {sum(total.values())} node tests {total['passed']} pass, "
        f"{total['refused']} are refused by name, {total['other']} do not apply.\n\n",
        "| operator | pass | refused | do not apply | why refused |\n|---|--:|--:|--:|---|\n",
    ]
    for op in sorted(counts):
        c = counts[op]
        why = reasons[op].most_common(1)[0][0].replace("|", "/") if reasons[op] else ""
        lines.append(f"| {op} | {c['passed'] or ''} | {c['refused'] or ''} | {c['other'] or ''} | {why} |\n")
    return "".join(lines)


def test_no_answer_is_wrong() -> None:
    assert [(o.name, o.why) for o in outcomes() if o.status == "wrong"] == []


def test_the_documented_table_is_what_runs() -> None:
    text = DOC.read_text("utf-8")
    have = text.split(BEGIN)[1].split(END)[0]
    if not have.startswith(f"onnx {onnx.__version__}:"):
        pytest.skip("the table was made with another version of onnx")
    assert have == table(), "run python -m tests.unit.test_onnx_conformance"


def test_cases_for_several_processes_cover_the_operators() -> None:
    names = mpc_cases()
    assert len(names) >= 40
    assert len({outcome(n).op for n in names[:5]}) == 5


if __name__ == "__main__":
    before, rest = DOC.read_text("utf-8").split(BEGIN)
    DOC.write_text(before + BEGIN + table() + END + rest.split(END)[1], "utf-8")
