from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, reference
from privinfer.graph.from_torch import from_torch

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

# float32 loses at most one unit in the last place, 2**-23, for each of the terms of a sum; no sum here has
# more than 800, and the values of a layer are compared on the scale of its largest one
TOLERANCE = 800 * 2.0**-23

torch.manual_seed(7)
torch.set_num_threads(1)


class Fn(nn.Module):
    """A function of one input, with a weight of a given shape."""

    def __init__(self, f: Callable[..., Any], *shape: int) -> None:
        super().__init__()
        self.f = f
        self.w = nn.Parameter(torch.randn(*shape)) if shape else None

    def forward(self, x: Any) -> Any:
        return self.f(x) if self.w is None else self.f(x, self.w)


def compare(module: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any) -> ir.Model:
    """Import, and hold the reference's answers against the module's in evaluation mode."""
    model = from_torch(module, shapes, **options)
    module.eval()
    for batch in (1, 3):
        feeds = {k: torch.randn(batch, *s[1:]) for k, s in shapes.items()}
        with torch.no_grad():
            result = module(**feeds)
        if isinstance(result, dict):
            result = list(result.values())
        expected = result if isinstance(result, list | tuple) else [result]
        got = reference.run(model, {k: v.numpy() for k, v in feeds.items()})
        for y, want in zip(got.values(), (e.numpy() for e in expected), strict=True):
            assert y.shape == want.shape
            limit = TOLERANCE * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(y, want, rtol=0, atol=limit)
    assert ir.Architecture.from_bytes(model.architecture.to_bytes()) == model.architecture
    return model


def ops(model: ir.Model) -> list[str]:
    return [type(node.op).__name__ for node in model.architecture.nodes]


def randomised(module: Any) -> Any:
    """Normalisations with statistics and weights that differ from one and zero."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return module


IMG, VEC, SEQ = (1, 4, 6, 8), (1, 6), (1, 5, 6)

CASES: dict[str, tuple[Any, tuple[int, ...], list[str]]] = {
    "linear": (nn.Linear(6, 3), VEC, ["Linear"]),
    "linear without bias": (nn.Linear(6, 3, bias=False), SEQ, ["Linear"]),
    "matmul": (Fn(lambda x, w: x @ w, 6, 2), SEQ, ["Linear"]),
    "matmul with a vector": (Fn(lambda x, w: x @ w, 6), SEQ, ["Linear", "Reshape"]),
    "mm": (Fn(lambda x, w: torch.mm(x, w.t()), 2, 6), VEC, ["Linear"]),
    "addmm": (Fn(lambda x, w: torch.addmm(w[0, :3], x, w[:, :3], beta=2, alpha=0.5), 6, 4), VEC, ["Linear"]),
    "conv": (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=2), IMG, ["Conv2d"]),
    "conv same": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), IMG, ["Conv2d"]),
    "conv valid": (nn.Conv2d(4, 6, 3, padding="valid", bias=False), IMG, ["Conv2d"]),
    "conv norm relu": (
        randomised(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))),
        IMG,
        ["Conv2d", "Relu"],
    ),
    "linear norm": (randomised(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))), VEC, ["Linear"]),
    "norm": (randomised(nn.BatchNorm2d(4, affine=False)), IMG, ["Scale"]),
    "norm over time": (
        randomised(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(5))),
        SEQ,
        ["Linear", "Scale"],
    ),
    "average": (nn.AvgPool2d(2), IMG, ["AvgPool2d"]),
    "average padded": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMG, ["AvgPool2d"]),
    "average counted": (nn.AvgPool2d((3, 2), 2, 1), IMG, ["AvgPool2d"]),
    "average, even ceil": (nn.AvgPool2d(2, ceil_mode=True), IMG, ["AvgPool2d"]),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 2)), IMG, ["AvgPool2d"]),
    "adaptive to one": (nn.AdaptiveAvgPool2d(1), IMG, ["AvgPool2d"]),
    "adaptive to itself": (nn.AdaptiveAvgPool2d((None, 1)), IMG, ["AvgPool2d"]),
    "mean": (Fn(lambda x: x.mean((2, 3))), IMG, ["AvgPool2d", "Reshape"]),
    "mean kept": (Fn(lambda x: x.mean((-1, -2), keepdim=True)), IMG, ["AvgPool2d"]),
    "mean over time": (Fn(lambda x: x.mean(1)), SEQ, ["Reshape", "AvgPool2d", "Reshape"]),
    "relu": (Fn(torch.relu), VEC, ["Relu"]),
    "clamp": (Fn(lambda x: x.clamp(min=0)), VEC, ["Relu"]),
    "literal factor": (Fn(lambda x: x * 0.5), VEC, ["Multiply"]),
    "literal quotient": (Fn(lambda x: x / 2), VEC, ["Multiply"]),
    "negation": (Fn(lambda x: -x), VEC, ["Multiply"]),
    "literal offset": (Fn(lambda x: x + 3), VEC, ["Shift"]),
    "literal difference": (Fn(lambda x: 1 - x), VEC, ["Multiply", "Shift"]),
    "tensor factor": (Fn(lambda x: x * torch.tensor(0.5)), VEC, ["Scale"]),
    "weight factor": (Fn(lambda x, w: x * w, 4, 1, 1), IMG, ["Scale"]),
    "weight quotient": (Fn(lambda x, w: x / (w.abs() + 1), 8), IMG, ["Scale"]),
    "weight offset": (Fn(lambda x, w: torch.add(x, w, alpha=2), 6), SEQ, ["Scale"]),
    "weight minus": (Fn(lambda x, w: w - x, 6, 1), IMG, ["Scale"]),
    "sum": (Fn(lambda x: torch.add(torch.relu(x), x, alpha=3)), VEC, ["Relu", "Multiply", "Add"]),
    "difference": (Fn(lambda x: torch.relu(x) - x), VEC, ["Relu", "Multiply", "Add"]),
    "twice": (Fn(lambda x: x + x), VEC, ["Add"]),
    "concatenation": (Fn(lambda x: torch.cat([x, -x], 2)), IMG, ["Multiply", "Concat"]),
    "stacked last": (Fn(lambda x: torch.cat([x, x, x], -1)), SEQ, ["Concat"]),
    "flatten": (nn.Flatten(), IMG, ["Reshape"]),
    "partial flatten": (Fn(lambda x: x.flatten(2)), IMG, ["Reshape"]),
    "view": (Fn(lambda x: x.view(x.size(0), -1)), IMG, ["Reshape"]),
    "reshape": (Fn(lambda x: x.reshape(x.shape[0], 8, 24)), IMG, ["Reshape"]),
    "permute": (Fn(lambda x: x.permute(0, 2, 3, 1)), IMG, ["Transpose"]),
    "transpose": (Fn(lambda x: x.transpose(1, -1)), IMG, ["Transpose"]),
    "transpose and view": (Fn(lambda x: x.transpose(1, 2).reshape(-1, 30)), SEQ, ["Transpose", "Reshape"]),
    "squeeze": (Fn(lambda x: x.mean(1, keepdim=True).squeeze(1)), VEC, ["Reshape", "AvgPool2d", "Reshape"]),
    "unsqueeze": (Fn(lambda x: x.unsqueeze(1).unsqueeze(-1)), VEC, ["Reshape"]),
    "dropout": (nn.Sequential(nn.Dropout(), nn.ReLU()), VEC, ["Relu"]),
    "no-ops": (Fn(lambda x: torch.relu(x.clone().contiguous().detach().float())), VEC, ["Relu"]),
    "padding": (nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(4, 2, 3, padding=1)), IMG, ["Conv2d"]),
    "padding of pooling": (
        nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.AvgPool2d(3, count_include_pad=False)),
        IMG,
        ["AvgPool2d"],
    ),
}


def argument_of(module: Any) -> str:
    """Name of the one input of a module."""
    (found,) = (k for k in ("x", "input", "src") if k in module.forward.__code__.co_varnames[:2])
    return found


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    module, shape, expected = CASES[name]
    assert ops(compare(module, {argument_of(module): shape})) == expected


@pytest.mark.parametrize(
    ("level", "names"),
    [({}, ["conv2d", "linear"]), (None, ["convolution", "addmm"])],
    ids=["as written", "core"],
)
def test_core_aten_is_read_as_well(monkeypatch: pytest.MonkeyPatch, level: Any, names: list[str]) -> None:
    """Other releases of torch decompose more: the core operator set gives the same architecture."""
    from privinfer.graph import from_torch as importer

    net = randomised(
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Dropout(), nn.Linear(12, 4),
        )
    )  # fmt: skip
    seen: list[str] = []

    def export(torch: Any, module: Any, arguments: Any, shapes: Any) -> Any:
        module.eval()
        program = torch.export.export(
            module, (), {k: torch.zeros(shapes[k]) for k in arguments}, strict=False
        )
        program = program.run_decompositions() if level is None else program.run_decompositions(level)
        seen.extend(str(x.target) for x in program.graph.nodes)
        return program

    monkeypatch.setattr(importer, "_export", export)
    model = compare(net, {"input": (1, 1, 6, 6)})
    assert ops(model) == ["Conv2d", "Relu", "AvgPool2d", "Reshape", "Linear"]
    assert all(any(f"aten.{k}." in t for t in seen) for k in names)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_convolution(groups, per_group, size, kernel, stride, dilation, padding) -> None:  # type: ignore[no-untyped-def]
    cin, cout = (groups * c for c in per_group)
    net = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups)
    assert ops(compare(net, {"input": (1, cin, *size)})) == ["Conv2d"]


class Fusion(nn.Module):
    """Image, genotypes and blood values, each through its own branch, then together."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.genes = nn.Sequential(nn.Linear(40, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.blood = nn.Linear(7, 4)
        self.head = nn.Sequential(nn.Linear(28, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, xray: Any, dna: Any, blood: Any) -> Any:
        parts = [self.image(xray), self.genes(dna), torch.relu(self.blood(blood))]
        return {"risk": self.head(torch.cat(parts, dim=1))}


SHAPES = {"blood": (1, 7), "xray": (1, 1, 28, 28), "dna": (1, 40)}


def test_fusion_of_three_inputs() -> None:
    net = randomised(Fusion().train())
    model = compare(net, SHAPES, ranges={"xray": (0, 1), "dna": (0, 2)})
    graph = model.architecture
    assert [(i.name, i.shape, i.low, i.high) for i in graph.inputs] == [
        ("xray", (1, 28, 28), 0.0, 1.0), ("dna", (40,), 0.0, 2.0), ("blood", (7,), *ir.DEFAULT_RANGE),
    ]  # fmt: skip
    assert [o.name for o in graph.outputs] == ["risk"]
    assert sorted(ops(model)).count("Scale") == 0
    assert {"image.0", "genes.0", "blood_2", "head.2"} <= {node.name for node in graph.nodes}


def test_training_mode_is_restored_also_after_a_failure() -> None:
    net = Fusion().train()
    net.image[1].eval()
    before = [m.training for m in net.modules()]
    from_torch(net, SHAPES)
    assert [m.training for m in net.modules()] == before
    with pytest.raises(ModelUnsupported):
        from_torch(net, SHAPES | {"dna": (1, 41)})
    assert [m.training for m in net.modules()] == before


def test_a_larger_batch_gives_the_same_architecture() -> None:
    net = Fusion()
    one, four = (from_torch(net, {k: (b, *s[1:]) for k, s in SHAPES.items()}) for b in (1, 4))
    assert one.architecture.digest() == four.architecture.digest()


def test_names_of_outputs() -> None:
    both = Fn(lambda x: (torch.relu(x), (-x,)))
    assert [o.name for o in from_torch(Fn(torch.relu), {"x": VEC}).architecture.outputs] == ["output"]
    assert [o.name for o in compare(Fn(lambda x: (x * 2, -x)), {"x": VEC}).architecture.outputs] == [
        "output_0", "output_1",
    ]  # fmt: skip
    assert [o.name for o in from_torch(both, {"x": VEC}).architecture.outputs] == ["output_0", "output_1_0"]
    named = from_torch(both, {"x": VEC}, outputs=["a", "b"])
    assert [o.name for o in named.architecture.outputs] == ["a", "b"]
    for wrong in (["a"], ["a", "a"], "ab"):
        with pytest.raises(ConfigError, match="the module has 2 outputs"):
            from_torch(both, {"x": VEC}, outputs=wrong)


def test_precision_travels_and_double_weights_stay_exact() -> None:
    net = nn.Linear(6, 3).double()
    precision = ir.Precision(fractional_bits=10, comparison_bits=24)
    model = from_torch(net, {"input": VEC}, precision=precision)
    assert model.architecture.precision == precision
    assert (model.parameters["linear"]["weight"] == net.weight.detach().numpy().T).all()


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ({"xray": (1, 1, 28, 28), "dna": (1, 40)}, {}, "shape of input 'blood' is missing"),
        (SHAPES | {"age": (1, 1)}, {}, "shape is given for 'age', which is no input"),
        (SHAPES | {"dna": (2, 40)}, {}, "axis 0 of every input has to be the batch"),
        (SHAPES | {"dna": ()}, {}, "input 'dna': its shape has to be positive integers"),
        (SHAPES | {"dna": (1, -40)}, {}, "input 'dna': its shape has to be positive integers"),
        (SHAPES | {"dna": 40}, {}, "input 'dna': its shape has to be positive integers"),
        ({}, {}, "shape of input 'xray' is missing"),
        (SHAPES, {"ranges": {"age": (0, 1)}}, "range is given for 'age', which is no input"),
        (SHAPES, {"ranges": {"dna": (2, 0)}}, "range of input 'dna' is not a finite interval"),
        (SHAPES, {"ranges": {"dna": (0, float("inf"))}}, "range of input 'dna' is not a finite interval"),
    ],
)
def test_names_and_shapes_that_do_not_fit(shapes: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_torch(Fusion(), shapes, **options)


def test_only_modules() -> None:
    for wrong in (lambda x: x, torch.jit.script(nn.Linear(2, 2)), None):
        with pytest.raises(ConfigError, match=r"a model is a torch\.nn\.Module"):
            from_torch(wrong, {"x": (1, 2)})


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "statistics of the batch": (
        nn.BatchNorm2d(4, track_running_stats=False),
        IMG,
        r"never with statistics of the batch: call \.eval\(\)",
    ),
    "zero divisor": (Fn(lambda x: x / 0), VEC, "never: division by zero"),
    "unbounded divisor": (
        Fn(lambda x: 1 / x),
        VEC,
        r"not yet: the range of reciprocal is not known to stay away from 0, declare",
    ),
    "constant adds an axis": (Fn(lambda x, w: x + w, 3, 1, 6), VEC, "never: .* batch axis"),
    "value of fewer axes": (Fn(lambda x: x + x[:, 0]), (2, 2, 2), "never: values with different numbers"),
    "batch flattened": (Fn(lambda x: x.reshape(-1)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch split": (Fn(lambda x: x.reshape(-1, 3)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch moved": (Fn(lambda x: x.transpose(0, 1)), SEQ, r"never: it touches the batch axis \(axis 0\)"),
    "batch moved and normed": (
        nn.Sequential(Fn(lambda x: x.transpose(0, 1)), nn.LayerNorm(6)),
        SEQ,
        r"node 'transpose' \(aten.transpose\): never: it touches the batch axis \(axis 0\)",
    ),
    "batch folded and added": (
        Fn(lambda x: x.reshape(10, 3) + x.reshape(-1)[0]),
        SEQ,
        r"never: it touches the batch axis \(axis 0\)",
    ),
    "batch selected": (Fn(lambda x: x[0]), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch sliced": (Fn(lambda x: x[1:]), (2, 6), r"never: it touches the batch axis \(axis 0\)"),
    "batch repeated": (Fn(lambda x: x.repeat(2, 1)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch expanded": (Fn(lambda x: x.expand(3, 6)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch added": (Fn(lambda x: x.unsqueeze(0)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch dropped": (Fn(lambda x: x.squeeze(0)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "any axis dropped": (Fn(lambda x: x.squeeze()), VEC, "never: without axes it may touch the batch axis"),
    "batch joined": (Fn(lambda x: torch.cat([x, x], 0)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch averaged": (Fn(lambda x: x.mean(0)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch summed": (Fn(lambda x: x.sum((0, 1))), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch in a softmax": (nn.Softmax(0), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "batch accumulated": (Fn(lambda x: x.cumsum(0)), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "all averaged": (Fn(lambda x: x.mean()), VEC, r"never: over all axes it touches the batch axis"),
    "all compared": (Fn(lambda x: x.max()), VEC, r"never: over all axes it touches the batch axis"),
    "batch multiplied": (Fn(lambda x, w: x @ w, 1), (1,), r"never: it sums over the batch axis"),
    "samples multiplied": (Fn(lambda x: x @ x.t()), VEC, r"never: it touches the batch axis \(axis 0\)"),
    "samples in einsum": (
        Fn(lambda x: torch.einsum("bi,cj->bc", x, x)),
        VEC,
        r"never: it touches the batch axis \(axis 0\)",
    ),
    "rows of a batch": (Fn(lambda x, w: x + w, 2, 1), (2, 6), r"never: the constant differs along the batch"),
    "time in front": (
        nn.LSTM(6, 3),
        (2, 5, 6),
        r"\(aten.lstm\): never: it touches the batch axis .*: use batch_first=True",
    ),
    "last state as it is": (
        nn.LSTM(6, 3, batch_first=True),
        SEQ,
        r"node 'lstm' \(aten.lstm\): never: it touches the batch axis",
    ),
    "projected states": (
        nn.LSTM(6, 3, proj_size=2, batch_first=True),
        SEQ,
        "not yet: a recurrent layer with",
    ),
    "embedding": (
        Fn(lambda x: F.embedding(x.long(), torch.eye(3))),
        VEC,
        "not yet: a private value in another type than floating point, replace an index by a one-hot input",
    ),
    "private index": (
        Fn(lambda x: torch.eye(6)[x.argmax(1)]),
        VEC,
        r"\(aten.index\): never: which values are taken would depend on private data",
    ),
    "sorting": (Fn(lambda x: x.sort(1)[0]), VEC, r"\(aten.sort\): not yet, replace by leaving it off"),
    "best three": (Fn(lambda x: x.topk(3)[0]), VEC, r"\(aten.topk\): not yet, replace by leaving it off"),
    "nonzero": (Fn(lambda x: x.nonzero()), VEC, r"\(aten.nonzero\): never: which steps run, or how"),
    "equality": (Fn(lambda x: (x == 1).float()), VEC, r"\(aten.eq\): not yet: whether two private numbers"),
    "odd power": (Fn(lambda x: x**2.5), VEC, r"\(aten.pow\): not yet: the power 2.5"),
    "power of a private value": (Fn(lambda x: 2**x), VEC, r"not yet: a constant to the power of a private"),
    "logarithm of anything": (Fn(torch.log), VEC, r"not yet: the range of log is not known"),
    "positions in a pool": (
        Fn(lambda x: F.max_pool2d(x, 2, return_indices=True)[1] * 2.0),
        IMG,
        "not yet: the second result of its operator",
    ),
    "rounded quotient": (
        Fn(lambda x: torch.div(x, 2, rounding_mode="floor")),
        VEC,
        "not yet: division with rounding",
    ),
    "random": (Fn(lambda x: x + torch.rand(6)), VEC, r"\(aten.rand\): never: a random result"),
    "noise like it": (
        Fn(lambda x: x + torch.randn_like(x)),
        VEC,
        r"\(aten.randn_like\): never: a random result",
    ),
    "branch on a value": (Fn(lambda x: x if x.sum() > 0 else -x), VEC, "torch.export cannot read the module"),
    "own branch": (
        Fn(lambda x: torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))),
        VEC,
        "never: which steps run",
    ),
    "constant output": (
        Fn(lambda x: (x * 2, torch.ones(1, 2))),
        VEC,
        "output 'output_1' does not depend on any input",
    ),
    "no number": (Fn(lambda x, w: x @ (w * float("nan")), 6, 2), VEC, "its weights hold NaN or infinity"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, shape, message = REFUSED[name]
    with pytest.raises(ModelUnsupported, match=message) as caught:
        from_torch(module, {argument_of(module): shape})
    assert "\n" not in caught.value.message
    assert not caught.value.message.endswith(".")
    assert capfd.readouterr() == ("", "")


def test_an_input_nobody_reads_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return torch.relu(x)

    with pytest.raises(ModelUnsupported, match="input 'y' is unused"):
        from_torch(Net(), {"x": VEC, "y": VEC})


def test_state_may_not_change() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.count.add_(1)
            return x * 2

    with pytest.raises(ModelUnsupported, match="never: forward changes the module's own state"):
        from_torch(Counter(), {"x": VEC})


def test_all_refusals_come_in_one_message() -> None:
    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            x = torch.sort(x, 1)[0]
            for _ in range(10):
                x = torch.floor(x)
            return torch.lgamma(x)

    with pytest.raises(ModelUnsupported) as caught:
        from_torch(Net(), {"x": IMG})
    message = caught.value.message
    assert message.startswith(
        "12 nodes are not supported: node 'sort' (aten.sort): not yet, replace by leaving"
    )
    assert message.count("node '") == 10
    assert message.endswith("; and 2 more")


def test_quantised_weights_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.ones(6, 2, dtype=torch.int8))

        def forward(self, x: Any) -> Any:
            return x + self.w[:, 0]

    with pytest.raises(ModelUnsupported, match=r"not yet: weights of type torch\.int8"):
        from_torch(Net(), {"x": VEC})


def test_trained_scalars_stay_out_of_the_architecture() -> None:
    digests = set()
    for value in (0.5, 0.75):
        net = Fn(lambda x, w: x * w, 1)
        net.w.data.fill_(value)
        digests.add(from_torch(net, {"x": VEC}).architecture.digest())
    assert len(digests) == 1


def test_options_with_defaults_and_keyword_arguments() -> None:
    class Net(nn.Module):
        def forward(self, x: Any, /, y: Any, z: Any = None, *, scale: float = 2.0) -> Any:
            return (x - y if z is None else x - y + z) * scale

    class Open(nn.Module):
        def forward(self, **parts: Any) -> Any:
            return torch.cat(list(parts.values()), 1)

    model = from_torch(Net(), {"y": VEC, "x": VEC})
    a, b = np.ones((2, 6)), np.full((2, 6), 5.0)
    assert (reference.run(model, {"x": a, "y": b})["output"] == -8).all()
    assert [i.name for i in from_torch(Net(), {"z": VEC, "y": VEC, "x": VEC}).architecture.inputs] == [
        "x",
        "y",
        "z",
    ]
    assert [i.name for i in compare(Open(), {"b": VEC, "a": (1, 2)}).architecture.inputs] == ["b", "a"]


def test_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hidden(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ConfigError, match="torch is not installed") as caught:
        from_torch(None, {})  # type: ignore[arg-type]
    assert caught.value.hint == "pip install 'privinfer[torch]'"
