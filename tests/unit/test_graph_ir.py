"""The graph's public half: shapes, bytes, digests, and what comes of a hostile peer's bytes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import pickle
from collections.abc import Iterator
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError, ModelUnsupported, PrecisionError
from privinfer.graph import ir, reference
from privinfer.graph.lower import compile_program
from tests.support.strategies import architectures, random_model, rows

BASE = ir.Architecture(
    inputs=(ir.Input("x", (4, 6, 6), -1.0, 2.0), ir.Input("y", (9,))),
    nodes=(
        ir.Node("conv", ir.Conv2d(4, 4, (3, 2), (1, 2), (1, 0, 1, 1), (1, 1), 2), ("x",)),
        ir.Node("scale", ir.Scale(1, 4), ("conv",)),
        ir.Node("relu", ir.Relu(), ("scale",)),
        ir.Node("pool", ir.AvgPool2d((2, 1), (2, 1), (0, 0, 0, 0), True), ("relu",)),
        ir.Node("flat", ir.Reshape((36,)), ("pool",)),
        ir.Node("turn", ir.Transpose((1,)), ("flat",)),
        ir.Node("all", ir.Concat(1), ("turn", "y")),
        ir.Node("linear", ir.Linear(45, 9), ("all",)),
        ir.Node("sum", ir.Add(), ("linear", "y")),
        ir.Node("half", ir.Multiply(0.5), ("sum",)),
        ir.Node("curve", ir.Polynomial(-4.0, 8.0, (0.5, 1.0, -0.25)), ("half",)),
    ),
    outputs=(ir.Output("a", "curve"), ir.Output("b", "linear")),
    precision=ir.Precision(16, 40, "interval", 2.0**-8),
)


# -- bytes and digests -----------------------------------------------------------------------------


@given(architectures())
def test_bytes_and_back(architecture: ir.Architecture) -> None:
    data = architecture.to_bytes()
    again = ir.Architecture.from_bytes(data)
    assert again == architecture
    assert again.to_bytes() == data
    assert again.digest() == architecture.digest()


def test_equal_architectures_have_equal_bytes() -> None:
    """Python takes 2 and 2.0 for equal, CBOR does not."""
    two, same = (
        dataclasses.replace(BASE, nodes=(*BASE.nodes[:9], ir.Node("half", ir.Multiply(factor), ("sum",))))
        for factor in (2, 2.0)
    )
    assert two == same
    assert two.to_bytes() == same.to_bytes()


def variants() -> Iterator[tuple[str, ir.Architecture]]:
    """BASE with one attribute changed at a time, every attribute of every part."""

    def other(value: Any) -> Any:
        match value:
            case bool():
                return not value
            case int():
                return value + 1
            case float():
                return value + 0.25
            case str():
                return value + "'"
            case tuple():
                return (*value[:-1], other(value[-1])) if value else (1,)
        raise TypeError(type(value))

    for part in ("inputs", "nodes", "outputs"):
        things = getattr(BASE, part)
        for k, thing in enumerate(things):
            for field in dataclasses.fields(thing):
                value = getattr(thing, field.name)
                if field.name == "op":
                    changed = [
                        dataclasses.replace(value, **{f.name: other(getattr(value, f.name))})
                        for f in dataclasses.fields(value)
                    ]
                else:
                    changed = [other(value)]
                for new in changed:
                    thing_ = dataclasses.replace(thing, **{field.name: new})
                    yield (
                        f"{part}[{k}].{field.name} {new}",
                        dataclasses.replace(BASE, **{part: (*things[:k], thing_, *things[k + 1 :])}),
                    )
        yield f"fewer {part}", dataclasses.replace(BASE, **{part: things[:-1]})
        yield f"{part} swapped", dataclasses.replace(BASE, **{part: (*things[1:], things[0])})
    yield "relu for add", dataclasses.replace(BASE, nodes=(*BASE.nodes[:2], BASE.nodes[8], *BASE.nodes[3:]))
    for field in dataclasses.fields(ir.Precision):
        new = "calibrated" if field.name == "basis" else other(getattr(BASE.precision, field.name))
        yield (
            f"precision.{field.name}",
            dataclasses.replace(BASE, precision=dataclasses.replace(BASE.precision, **{field.name: new})),
        )
    none = dataclasses.replace(BASE.precision, error_bound=None)
    yield "no error bound", dataclasses.replace(BASE, precision=none)


def test_the_digest_changes_with_every_attribute() -> None:
    digests = {BASE.digest(): "the base"}
    for what, changed in variants():
        assert changed != BASE
        digest = changed.digest()
        assert digest not in digests, f"{what} has the digest of {digests[digest]}"
        digests[digest] = what
    assert len(digests) > 60


# -- hostile bytes ---------------------------------------------------------------------------------

HOSTILE = [
    *(None, True, False, -1, 0, 1, 3, 255, 2**31, 2**63, 2**64, -(2**70), 10**400),
    *(0.0, 1.5, 4.0, 1e300, math.inf, -math.inf, math.nan, "", "x", "Relu", "\x1b[31m", "a" * 300, b"", b"x"),
    *([], [1], [1, 2], [1, 2, 3], [2.0, 18.0], [[1]], ["x"], {}, {"x": 1}, {1: 2}, [None], [True, True]),
]


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a tree of lists and maps."""
    yield at
    match tree:
        case dict():
            for key, value in tree.items():
                yield from paths(value, (*at, key))
        case list():
            for k, value in enumerate(tree):
                yield from paths(value, (*at, k))


TREE = cbor2.loads(BASE.to_bytes())
PATHS = [p for p in paths(TREE) if p]


def put(path: tuple[Any, ...], value: Any) -> bytes:
    """BASE's bytes with something else at one place."""
    tree = copy.deepcopy(TREE)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return cbor2.dumps(tree, canonical=True)


def has_kind(value: Any, kind: str) -> bool:
    """Whether an attribute is what its annotation says."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    match kind:
        case "int":
            return whole
        case "float":
            return isinstance(value, float) or whole
        case "float | None":
            return value is None or has_kind(value, "float")
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
    inner = next((k for k in ("str", "float") if k in kind), "int")
    return isinstance(value, tuple) and all(has_kind(v, inner) for v in value)


def check_accepted(architecture: ir.Architecture) -> None:
    """What was accepted is well typed, and can be compiled or is refused by name."""
    for thing in (
        *architecture.inputs,
        *architecture.outputs,
        architecture.precision,
        *(n.op for n in architecture.nodes),
    ):
        for field in dataclasses.fields(thing):
            assert has_kind(getattr(thing, field.name), str(field.type)), (thing, field.name)
    with contextlib.suppress(ModelUnsupported, PrecisionError):
        compile_program(architecture)


def feed(data: bytes) -> None:
    """Only two kinds of error may come out."""
    try:
        accepted = ir.Architecture.from_bytes(data)
    except (ConfigError, ModelUnsupported):
        return
    assert accepted.to_bytes() == data
    check_accepted(accepted)


@settings(max_examples=300)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xa0")
@example(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x5b\x00\x00\x00\xff\xff\xff\xff\xff")
@example(b"\x81" * 100_000)
@example(b"\xd8\x1c" * 50_000 + b"\x80")
def test_random_bytes(data: bytes) -> None:
    feed(data)


def test_hostile_values_everywhere() -> None:
    """Each hostile value at each place of a valid architecture."""
    found: dict[str, str] = {}
    for path in PATHS:
        for value in HOSTILE:
            try:
                feed(put(path, value))
            except Exception as error:
                found.setdefault(f"{type(error).__name__} at {path[:1]}..{path[-1]!r}", f"{path}: {value!r}")
    assert not found, "\n".join(f"{k}: {v}" for k, v in found.items())


@settings(max_examples=300)
@given(st.integers(0, len(BASE.to_bytes()) - 1), st.integers(1, 255), st.integers(0, 40))
def test_flipped_and_cut_bytes(at: int, flip: int, cut: int) -> None:
    data = bytearray(BASE.to_bytes())
    data[at] ^= flip
    feed(bytes(data[: len(data) - cut]))


@given(st.sampled_from([p for p in PATHS if isinstance(p[-1], str)]))
def test_missing_and_unknown_keys(path: tuple[Any, ...]) -> None:
    tree = copy.deepcopy(TREE)
    at = tree
    for key in path[:-1]:
        at = at[key]
    value = at.pop(path[-1])
    with pytest.raises(ConfigError):
        ir.Architecture.from_bytes(cbor2.dumps(tree, canonical=True))
    if path != ("format",) and len(path) > 1:
        at[path[-1]], at["unknown"] = value, 1
        with pytest.raises(ConfigError):
            ir.Architecture.from_bytes(cbor2.dumps(tree, canonical=True))


def test_other_encodings_of_the_same_are_refused() -> None:
    loose = cbor2.dumps(dict(reversed(TREE.items())))
    assert cbor2.loads(loose) == TREE
    for data in (loose, BASE.to_bytes() + b"\x00", put(("format",), "privinfer.architecture/2")):
        with pytest.raises(ConfigError):
            ir.Architecture.from_bytes(data)
    with pytest.raises(ConfigError, match="4 MiB"):
        ir.Architecture.from_bytes(bytes(ir.MAX_ARCHITECTURE_BYTES + 1))


def test_an_output_has_a_printable_name() -> None:
    """A receiver's terminal shows it."""
    for name in ("", "\x1b[2J", "a" * 201):
        with pytest.raises(ModelUnsupported):
            dataclasses.replace(BASE, outputs=(ir.Output(name, "half"),)).shapes()


# -- shapes ----------------------------------------------------------------------------------------


@given(architectures(), st.integers(1, 3), st.integers(0, 2**32))
def test_shapes_are_those_of_the_values(architecture: ir.Architecture, batch: int, seed: int) -> None:
    model = random_model(architecture, seed)
    shapes = architecture.shapes()
    seen: dict[str, tuple[int, ...]] = {}
    reference.run(
        model, rows(architecture, batch, seed), lambda name, value: seen.update({name: value.shape})
    )
    assert seen == {name: (batch, *shape) for name, shape in shapes.items()}


X = ir.Input("x", (4, 6, 6))


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (ir.Node("n", ir.Linear(5, 1), ("x",)), "last axis"),
        (ir.Node("n", ir.Conv2d(3, 1, (1, 1)), ("x",)), "needs"),
        (ir.Node("n", ir.Conv2d(4, 3, (1, 1), groups=2), ("x",)), "groups"),
        (ir.Node("n", ir.Conv2d(4, 4, (1, 1), groups=0), ("x",)), "groups"),
        (ir.Node("n", ir.Conv2d(4, 4, (0, 1)), ("x",)), "positive"),
        (ir.Node("n", ir.Conv2d(4, 4, (1, 1), (0, 1)), ("x",)), "positive"),
        (ir.Node("n", ir.Conv2d(4, 4, (1, 1), padding=(0, -1, 0, 0)), ("x",)), "positive"),
        (ir.Node("n", ir.Conv2d(4, 4, (9, 1)), ("x",)), "empty or too large"),
        (ir.Node("n", ir.Conv2d(4, 2**26, (1, 1)), ("x",)), "empty or too large"),
        (ir.Node("n", ir.Linear(6, 0), ("x",)), "empty or too large"),
        (ir.Node("n", ir.Scale(4, 6), ("x",)), "axis"),
        (ir.Node("n", ir.Scale(0, 4), ("x",)), "axis"),
        (ir.Node("n", ir.Scale(1, 5), ("x",)), "axis"),
        (ir.Node("n", ir.AvgPool2d((2, 2), (1, 1), (2, 0, 0, 0)), ("x",)), "padding"),
        (ir.Node("n", ir.Relu(), ("x", "x")), "wrong number"),
        (ir.Node("n", ir.Add(), ("x",)), "wrong number"),
        (ir.Node("n", ir.Add(), ("x", "z")), "no earlier value"),
        (ir.Node("n", ir.Multiply(math.nan), ("x",)), "finite"),
        (ir.Node("n", ir.Concat(4), ("x", "x")), "axis"),
        (ir.Node("n", ir.Concat(1), ()), "axis"),
        (ir.Node("n", ir.Reshape((5,)), ("x",)), "cannot become"),
        (ir.Node("n", ir.Reshape((-4, -36)), ("x",)), "empty or too large"),
        (ir.Node("n", ir.Transpose((1, 2)), ("x",)), "order"),
        (ir.Node("n", ir.Transpose((1, 1, 2)), ("x",)), "order"),
        (ir.Node("n", ir.Polynomial(-1.0, 1.0, (1.0,)), ("x",)), "degree 1 to 31"),
        (ir.Node("n", ir.Polynomial(-1.0, 1.0, ()), ("x",)), "degree 1 to 31"),
        (ir.Node("n", ir.Polynomial(-1.0, 1.0, (0.1,) * 33), ("x",)), "degree 1 to 31"),
        (ir.Node("n", ir.Polynomial(1.0, 1.0, (1.0, 1.0)), ("x",)), "empty"),
        (ir.Node("n", ir.Polynomial(2.0, -1.0, (1.0, 1.0)), ("x",)), "empty"),
        (ir.Node("n", ir.Polynomial(-math.inf, 1.0, (1.0, 1.0)), ("x",)), "not finite"),
        (ir.Node("n", ir.Polynomial(-1.7e308, 1.7e308, (1.0, 1.0)), ("x",)), "not finite"),
        (ir.Node("n", ir.Polynomial(0.0, 1.0, (1.0, math.nan)), ("x",)), "not finite"),
        (ir.Node("x", ir.Relu(), ("x",)), "two values"),
        (ir.Node("", ir.Relu(), ("x",)), "name"),
        (ir.Node("\n", ir.Relu(), ("x",)), "name"),
    ],
)
def test_a_node_that_does_not_fit_is_named(node: ir.Node, why: str) -> None:
    with pytest.raises(ModelUnsupported, match=why):
        ir.Architecture((X,), (node,), (ir.Output("y", node.name),)).shapes()


@pytest.mark.parametrize(
    "source",
    [
        ir.Input("x", (0,)),
        ir.Input("x", (-1, -1)),
        ir.Input("x", (2**15, 2**15)),
        ir.Input("x", (1,), 1.0, -1.0),
        ir.Input("x", (1,), -math.inf, 1.0),
        ir.Input("x", (1,), math.nan, 1.0),
    ],
)
def test_an_impossible_input_is_refused(source: ir.Input) -> None:
    with pytest.raises(ModelUnsupported, match="'x'"):
        ir.Architecture((source,), (), (ir.Output("y", "x"),)).shapes()


def test_an_architecture_without_ends_is_refused() -> None:
    for a in (
        ir.Architecture((), (), (ir.Output("y", "x"),)),
        ir.Architecture((X,), (), ()),
        ir.Architecture((X,), (), (ir.Output("y", "z"),)),
        ir.Architecture((X,), (), (ir.Output("y", "x"), ir.Output("y", "x"))),
        ir.Architecture((X, X), (), (ir.Output("y", "x"),)),
    ):
        with pytest.raises(ModelUnsupported):
            a.shapes()


@given(st.integers(-2, 30), st.integers(-2, 60), st.sampled_from(["interval", "calibrated", "guess"]))
def test_precision(f: int, n: int, basis: str) -> None:
    precision = ir.Precision(f, n, basis)
    if 1 <= f <= 24 and f + 4 <= n <= 48 and basis != "guess":
        precision.check()
    else:
        with pytest.raises(ConfigError):
            precision.check()


# -- models ----------------------------------------------------------------------------------------


def test_a_model_checks_its_parameters() -> None:
    good = random_model(BASE, 0)
    for node, name, value in (
        ("conv", "weight", np.zeros((4, 4, 3, 2))),
        ("linear", "bias", np.full(9, np.nan)),
        ("linear", "bias", np.full(9, np.inf)),
    ):
        wrong = {k: dict(v) for k, v in good.parameters.items()}
        wrong[node][name] = value
        with pytest.raises(ModelUnsupported, match=f"{node}.*{name}"):
            ir.Model(BASE, wrong)
    with pytest.raises(ModelUnsupported, match="missing"):
        ir.Model(BASE, {k: v for k, v in good.parameters.items() if k != "scale"})


def test_a_model_hides_its_weights() -> None:
    model = random_model(BASE, 0, change=lambda rng, array: np.full_like(array, 0.8675309))
    assert "8675309" not in repr(model)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            attempt(model)
