"""A small session on one stage: six parties as threads over memory, or by their files over TLS."""

import functools
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from privinfer.backends.base import Phase
from privinfer.backends.mpc import roles
from privinfer.errors import PrivinferError
from privinfer.graph.load import from_onnx
from privinfer.graph.lower import compile_program
from privinfer.runtime.party import Party
from privinfer.runtime.post import STEP_BITS
from privinfer.session import Identity, Manifest
from privinfer.session.manifest import Party as Entry
from privinfer.transport import Frame, Kind, MemoryHub

NAMES = ("hospital", "dna_company", "laboratory", "startup", "patient", "helper")
INPUTS = {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}
SHAPES = {"xray": (4,), "dna": (5,), "blood": (3,)}
RECEIVERS = {"risk": "patient"}
GREETINGS = (
    "greeting",
    "nonces",
    "architecture",
    "statements",
    "signatures",
    "offers",
    "more offers",
    "halves",
)
E1, E2, H = "startup", "hospital", "helper"
STEP = (1 << STEP_BITS) - 1


@functools.cache
def onnx_bytes(seed=0, wide=3):
    """Three inputs, a ReLU layer each, one dense layer over all: x -> risk (2 values)."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    for name, (size,) in SHAPES.items():
        weights.append(numpy_helper.from_array(rng.normal(size=(size, wide)).astype(np.float32), f"w_{name}"))
        weights.append(numpy_helper.from_array(rng.normal(size=wide).astype(np.float32), f"b_{name}"))
        nodes.append(
            helper.make_node("Gemm", [name, f"w_{name}", f"b_{name}"], [f"z_{name}"], f"dense_{name}")
        )
        nodes.append(helper.make_node("Relu", [f"z_{name}"], [f"h_{name}"], f"relu_{name}"))
    nodes.append(helper.make_node("Concat", [f"h_{n}" for n in SHAPES], ["all"], "all_", axis=1))
    weights.append(numpy_helper.from_array(rng.normal(size=(3 * wide, 2)).astype(np.float32), "w"))
    weights.append(numpy_helper.from_array(rng.normal(size=2).astype(np.float32), "b"))
    nodes.append(helper.make_node("Gemm", ["all", "w", "b"], ["risk"], "last"))
    graph = helper.make_graph(
        nodes,
        "risk",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *s]) for n, s in SHAPES.items()],
        [helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["batch", 2])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


@functools.cache
def model(seed=0):
    return from_onnx(onnx_bytes(seed), dict.fromkeys(SHAPES, (-4.0, 4.0)))


@functools.cache
def identity(name):
    return Identity.generate(name, days=2)


def rows(count=1, seed=1):
    rng = np.random.default_rng(seed)
    return {INPUTS[n]: {n: np.round(rng.uniform(-3.9, 3.9, (count, *s)), 4)} for n, s in SHAPES.items()}


def flat(inputs):
    return {k: v for own in inputs.values() for k, v in own.items()}


def manifest(deadline=5.0, **changes):
    parties = tuple(Entry(n, "127.0.0.1", 1 + k, identity(n).certificate_pem) for k, n in enumerate(NAMES))
    fields = {
        "session": "5e" * 16,
        "backend": "mpc",
        "model": model().architecture.digest(),
        "parties": parties,
        "model_owner": E1,
        "evaluators": (E1, E2),
        "helper": H,
        "inputs": INPUTS,
        "receivers": RECEIVERS,
        "deadline": deadline,
        "connect_timeout": deadline,
    }
    return Manifest(**(fields | changes))


@dataclass
class Outcome:
    """How a session ended at one party."""

    outputs: dict | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    report: dict | None = None


@dataclass
class Play:
    """One session over memory.

    hook(source, destination, frame) sees each frame; `manifests`, `models`, `inputs` replace what one party
    holds; `before(name)` runs in its thread first.
    """

    deadline: float = 5.0
    hook: object = None
    manifests: dict = field(default_factory=dict)
    models: dict = field(default_factory=dict)
    identities: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=rows)
    runs: int = 1
    wrap: object = None
    progress: object = None
    act: object = None
    only: tuple = NAMES
    base: object = None
    stores: object = None  # makes a party's store, or None
    receipts: object = None  # folder
    ledgers: object = None  # says a party's folder, or None
    openings: dict = field(default_factory=dict)
    uses: dict = field(default_factory=dict)  # ledgers of consents
    consents: list = field(default_factory=list)  # what the consent party brings to each run, as arguments

    def __post_init__(self):
        self.base = self.base or manifest(self.deadline)
        self.hub = MemoryHub(self.base.names)
        self.hub.on_frame = self.hook
        self.outcomes = {name: Outcome() for name in self.only}

    def _one(self, name):
        mine, started = self.outcomes[name], time.monotonic()
        m = self.manifests.get(name, self.base)
        own = self.models.get(name, model() if name == m.model_owner else None)
        end = self.hub.endpoint(name)
        if self.wrap is not None:
            end = self.wrap(name, end)
        watch = None if self.progress is None else functools.partial(self.progress, name)
        try:
            store = None if self.stores is None else self.stores(name)
            who = self.identities.get(name, identity(name))
            kept = None if self.receipts is None else self.receipts / f"{name}.receipt"
            ledger = None if self.ledgers is None else self.ledgers(name)
            with Party(
                m,
                name,
                who,
                end,
                model=own,
                progress=watch,
                store=store,
                opening=self.openings.get(name),
                receipt=kept,
                ledger=ledger,
                uses=self.uses.get(name),
            ) as party:
                if self.act is not None:
                    self.act(name, party)
                for k in range(self.runs):
                    given = self.inputs[k] if isinstance(self.inputs, list) else self.inputs
                    brings = self.consents[k] if self.consents and name == m.terms.consent else {}
                    result = party.run(given.get(name, {}), **brings)
                    mine.report = party.report
                    if result is not None:
                        mine.outputs = result.outputs
        except BaseException as error:
            mine.error = error
        mine.seconds = time.monotonic() - started

    def run(self, limit=None):
        """Play it; fails where a party hangs."""
        threads = [threading.Thread(target=self._one, args=(n,), name=n, daemon=True) for n in self.only]
        for thread in threads:
            thread.start()
        until = time.monotonic() + (limit or 3 * self.deadline + 5)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        hung = [t.name for t in threads if t.is_alive()]
        self.hub.close()
        for thread in threads:
            thread.join(5)
        assert not hung, f"hung: {hung}"
        return self.outcomes


# -- names for messages ----------------------------------------------------------------------------


@functools.cache
def _program(exact=False):
    return compile_program(model().architecture, exact=exact)


def _cast():
    from privinfer.backends.mpc import Mpc

    return Mpc().cast(manifest())


@functools.cache
def _pairs():
    cast = list(_cast())
    return [(a, b) for a in cast for b in cast]


def hello(step):
    """What a HELLO of this step is."""
    if step < len(GREETINGS):
        return GREETINGS[step]
    return ("commitments", "commitments shown")[(step - len(GREETINGS)) % 2]


def kind_of(frame: Frame):
    """(phase, sender role, receiver role, step kind) of a frame; owners and receivers by class."""
    if frame.kind is not Kind.DATA:
        name = frame.kind.name
        return ("control", name, hello(frame.step) if name == "HELLO" else "")
    sender, receiver = _pairs()[frame.channel]
    step = frame.step & STEP
    named = {roles.SEEDS: "seeds", roles.READY: "ready", roles.COMPARE: "compare"}
    if step in named:
        what = named[step]
    elif step >= roles.ROUND:
        what = f"round {step - roles.ROUND}"
    else:
        what = type(_program().steps[step].operation).__name__.lower()
    if frame.phase == Phase.OFFLINE and what == "source":
        what = "mask seeds"
    return (Phase(frame.phase).name.lower(), sender.partition(":")[0], receiver.partition(":")[0], what)


def changed(frame, **fields):
    return replace(frame, **fields)


def culprits(outcomes, but=()):
    return {n: getattr(o.error, "culprit", None) for n, o in outcomes.items() if n not in but}


def typed(outcome):
    return isinstance(outcome.error, PrivinferError)
