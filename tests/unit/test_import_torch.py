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


class Attends(nn.Module):
    """Torch's own multi-head attention."""

    def __init__(self, options: Any = None, **call: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, **({"batch_first": True} | (options or {})))
        self.call = call

    def forward(self, x: Any) -> Any:
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        y, weights = self.layer(x, x, x, **self.call)
        y = y if self.layer.batch_first else y.transpose(0, 1)
        return y if weights is None else (y, weights)


class Own(nn.Module):
    """Attention as it is written by hand: heads first, the batch folded into them."""

    def forward(self, x: Any) -> Any:
        b, t, d = x.shape
        q = x.reshape(b, t, 2, d // 2).transpose(1, 2).reshape(b * 2, t, d // 2)
        scores = torch.bmm(q * 0.5, q.transpose(1, 2)).softmax(-1)
        return torch.bmm(scores, q).view(b, 2, t, d // 2).transpose(1, 2).reshape(b, t, d)


class Masked(nn.Module):
    """A causal mask that the module keeps."""

    def __init__(self, numbers: bool = False) -> None:
        super().__init__()
        mask = torch.ones(5, 5).tril() == 0
        self.register_buffer("mask", torch.zeros(5, 5).masked_fill(mask, -torch.inf) if numbers else mask)

    def forward(self, x: Any) -> Any:
        scores = x @ x.transpose(1, 2)
        seen = (
            scores + self.mask if self.mask.is_floating_point() else scores.masked_fill(self.mask, -torch.inf)
        )
        return seen.softmax(-1) @ x


class Stateful(nn.Module):
    def __init__(self, kind: Any, value: float = 0.3) -> None:
        super().__init__()
        self.rnn = kind(6, 4, batch_first=True)
        self.h = nn.Parameter(torch.full((1, 1, 4), value))

    def forward(self, x: Any) -> Any:
        h = self.h.expand(1, x.shape[0], 4)
        return self.rnn(x, (h, h) if isinstance(self.rnn, nn.LSTM) else h)[0]


class First(nn.Module):
    """What a recurrent layer gives at all times, and its last states, the batch in front."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any) -> Any:
        y, states = self.rnn(x)
        return (y, *(s.transpose(0, 1) for s in (states if isinstance(states, tuple) else [states])))


class Later(nn.Module):
    """A recurrent layer that begins where another one ended, time in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(6, 4), nn.LSTM(6, 4)

    def forward(self, x: Any) -> Any:
        x = x.transpose(0, 1)
        return self.second(x, self.first(x)[1])[0].transpose(0, 1)


def chained(q: Any, k: Any, v: Any) -> Any:
    """Three parts that were unpacked from one value, the batch behind."""
    return q @ k.transpose(-1, -2) @ v


MASK = torch.ones(5, 5).tril() == 0
GRID = torch.tensor([2, 0, 0, 5])
# no operators are named here: what one layer becomes is the builder's business
LATER: dict[str, tuple[Any, tuple[int, ...]]] = {
    **{
        f"{type(m).__name__} {k}": (m, VEC)
        for k, m in enumerate(
            (
                nn.Sigmoid(),
                nn.Tanh(),
                nn.GELU(),
                nn.GELU("tanh"),
                nn.SiLU(),
                nn.Mish(),
                nn.Softplus(),
                nn.Softplus(2.0),
                nn.ELU(),
                nn.ELU(0.5),
                nn.CELU(0.7),
                nn.SELU(),
                nn.Hardsigmoid(),
                nn.Hardswish(),
                nn.Hardtanh(),
                nn.Hardtanh(-0.5, 2.0),
                nn.ReLU6(),
                nn.LeakyReLU(),
                nn.RReLU(),
                nn.PReLU(),
                nn.LogSigmoid(),
                nn.Softshrink(),
                nn.Hardshrink(),
                nn.Threshold(0.25, 0.5),
                nn.Tanhshrink(),
                nn.GLU(1),
                nn.Softmax(1),
                nn.LogSoftmax(-1),
                nn.Softmin(1),
                nn.LayerNorm(6),
                nn.RMSNorm(6),
                nn.Softsign(),
            )
        )
    },
    "prelu of channels": (nn.PReLU(4, 0.3), IMG),
    "clamp both": (Fn(lambda x: x.clamp(-0.5, 0.75)), VEC),
    "clamp above": (Fn(lambda x: x.clamp(max=0.75)), VEC),
    "absolute": (Fn(torch.abs), VEC),
    "sign": (Fn(torch.sign), VEC),
    "sine": (Fn(lambda x: torch.sin(x) + torch.cos(x)), VEC),
    "error function": (Fn(torch.erf), VEC),
    "exponential": (Fn(lambda x: torch.exp(-x.abs())), VEC),
    "logarithm": (Fn(lambda x: torch.log(x.clamp(0.1, 5))), VEC),
    "square root": (Fn(lambda x: torch.sqrt(x.abs().clamp(0.25, 4))), VEC),
    "inverse root": (Fn(lambda x: torch.rsqrt(x.clamp(0.25, 4))), VEC),
    "reciprocal": (Fn(lambda x: torch.reciprocal(x.clamp(0.25, 4))), VEC),
    "quotient": (Fn(lambda x: x / x.clamp(0.25, 4)), VEC),
    "one over": (Fn(lambda x: 2 / x.clamp(0.25, 4)), VEC),
    "powers": (Fn(lambda x: x**2 + x**3 - x**4), VEC),
    "half a power": (Fn(lambda x: x.clamp(0.25, 4) ** 0.5 + x.clamp(0.25, 4) ** -0.5), VEC),
    "negative power": (Fn(lambda x: x.clamp(0.25, 4) ** -1), VEC),
    "square": (Fn(torch.square), VEC),
    "product": (Fn(lambda x: x * torch.relu(x)), VEC),
    "broadcast product": (Fn(lambda x: x * x.mean(1, keepdim=True)), VEC),
    "broadcast sum": (Fn(lambda x: x + x[:, :1] - x[:, :, :1]), SEQ),
    "two constant axes": (Fn(lambda x, w: x + w, 5, 6), SEQ),
    "constant widens": (Fn(lambda x, w: x.mean(2, keepdim=True) + w, 6), SEQ),
    "matrices": (Fn(lambda x: x @ x.transpose(1, 2)), SEQ),
    "matrices by heads": (Fn(lambda x: x @ x.transpose(-1, -2)), IMG),
    "weights from the left": (Fn(lambda x, w: w @ x, 3, 5), SEQ),
    "einsum of values": (Fn(lambda x: torch.einsum("bhid,bhjd->bhij", x, x)), IMG),
    "einsum turned": (Fn(lambda x: torch.einsum("bti,bsi->bst", x, x)), SEQ),
    "einsum with weights": (Fn(lambda x, w: torch.einsum("bti,io->bto", x, w), 6, 3), SEQ),
    "einsum weights first": (Fn(lambda x, w: torch.einsum("ti,bti->b", w, x), 5, 6), SEQ),
    "einsum to heads": (Fn(lambda x, w: torch.einsum("bti,hio->bhto", x, w), 2, 6, 3), SEQ),
    "attention": (Fn(lambda x: F.scaled_dot_product_attention(x, x, x)), IMG),
    "attention scaled": (Fn(lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3)), SEQ),
    "attention causal": (Fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), SEQ),
    "attention masked": (Fn(lambda x: F.scaled_dot_product_attention(x, x, x, ~MASK)), SEQ),
    "attention biased": (Fn(lambda x, w: F.scaled_dot_product_attention(x, x, x, w), 5, 5), SEQ),
    "attention by hand": (Own(), SEQ),
    "mask kept": (Masked(), SEQ),
    "mask of numbers": (Masked(numbers=True), SEQ),
    "multi-head": (Attends(need_weights=False), SEQ),
    "multi-head without bias": (Attends({"bias": False}, need_weights=False), SEQ),
    "multi-head with weights": (Attends(), SEQ),
    "multi-head, each head's weights": (Attends(average_attn_weights=False), SEQ),
    "multi-head masked": (Attends(need_weights=False, attn_mask=MASK), SEQ),
    "multi-head masked with weights": (Attends(attn_mask=MASK), SEQ),
    "multi-head, time in front": (Attends({"batch_first": False}, need_weights=False), SEQ),
    "encoder layer": (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), SEQ),
    "encoder layer, norm first": (
        nn.TransformerEncoderLayer(6, 3, 8, batch_first=True, norm_first=True, activation="gelu"),
        SEQ,
    ),
    "norm without weights": (nn.LayerNorm(6, elementwise_affine=False), SEQ),
    "norm of two axes": (nn.LayerNorm([5, 6]), SEQ),
    "group norm": (nn.GroupNorm(2, 4), IMG),
    "instance norm": (nn.InstanceNorm2d(4), IMG),
    "instance norm with weights": (nn.InstanceNorm2d(4, affine=True), IMG),
    "max pool": (nn.MaxPool2d(2), IMG),
    "max pool padded": (nn.MaxPool2d(3, 2, 1), IMG),
    "max pool of one axis": (nn.MaxPool1d(2), SEQ),
    "max pool, ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), IMG),
    "adaptive max": (nn.AdaptiveMaxPool2d((3, 2)), IMG),
    "average of one axis": (nn.AvgPool1d(2), SEQ),
    "adaptive of one axis": (nn.AdaptiveAvgPool1d(3), SEQ),
    "uneven adaptive": (nn.AdaptiveAvgPool2d(5), IMG),
    "ceil": (nn.AvgPool2d(3, ceil_mode=True), IMG),
    "largest": (Fn(lambda x: x.amax((1, 2)) + x.max(2)[0].amin(1)), SEQ),
    "smallest": (Fn(lambda x: x.min(1, keepdim=True)[0]), SEQ),
    "position": (Fn(lambda x: (x.argmax(1).float(), x.max(1)[1].float(), x.argmin(1).float())), VEC),
    "sum of axes": (Fn(lambda x: x.sum(2, keepdim=True) + x.sum(1, keepdim=True)), SEQ),
    "product of an axis": (Fn(lambda x: x.prod(1)), VEC),
    "log of a sum": (Fn(lambda x: x.logsumexp(1)), VEC),
    "mean of far axes": (Fn(lambda x: x.mean((1, 3))), IMG),
    "accumulated": (Fn(lambda x: x.cumsum(1)), SEQ),
    "slices": (Fn(lambda x: x[:, 1:4:2, -3:]), SEQ),
    "one of them": (Fn(lambda x: x[:, 0] + x[:, -1] + x.select(2, 1)[:, :1]), (1, 6, 6)),
    "narrow": (Fn(lambda x: x.narrow(1, 1, 3)), SEQ),
    "split": (Fn(lambda x: torch.cat(x.split([1, 4], 1)[::-1], 1)), SEQ),
    "chunks": (Fn(lambda x: torch.stack([p.sum(2) for p in x.chunk(2, 2)], -1)), SEQ),
    "unbound": (Fn(lambda x: sum(x.unbind(1))), SEQ),
    "indices": (Fn(lambda x: x.index_select(1, GRID[:3]) + x[:, GRID[:3]]), (1, 6, 6)),
    "reversed": (Fn(lambda x: x.flip(1) + x.roll(2, 2)), SEQ),
    "repeated": (Fn(lambda x: x.repeat(1, 2, 1) + x[:, :1].expand(-1, 10, -1)), SEQ),
    "stacked": (Fn(lambda x: torch.stack([x, x * 2], 1)), SEQ),
    "queries, keys, values": (
        Fn(lambda x: chained(*x.reshape(-1, 5, 3, 1, 2).permute(2, 0, 3, 1, 4))),
        SEQ,
    ),
    "batch moved and back": (Fn(lambda x: torch.tanh(x.transpose(0, 1) * 2).transpose(0, 1)), SEQ),
    "batch moved through a layer": (
        Fn(lambda x, w: F.linear(x.permute(1, 0, 2).contiguous(), w).permute(1, 0, 2), 3, 6),
        SEQ,
    ),
    "constant joined": (Fn(lambda x, w: torch.cat([w.expand(x.shape[0], 1, 6), x], 1), 1, 1, 6), SEQ),
    "where": (Fn(lambda x: torch.where(x > 0.25, x, -2 * x)), VEC),
    "where of numbers": (Fn(lambda x: torch.where(x <= 0.25, 1.0, -1.0)), VEC),
    "comparisons": (Fn(lambda x: (x >= 0.5).float() + (x < x.mean(1, keepdim=True)).float()), VEC),
    "logic": (Fn(lambda x: (((x > -0.5) & ~(x > 0.5)) | (x > 1)).float()), VEC),
    "extremes": (Fn(lambda x: torch.maximum(x, -x) + torch.minimum(x, x * x)), VEC),
    "extremes with weights": (Fn(torch.maximum, 6), VEC),
    "lonely padding": (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU()), IMG),
    "padding with ones": (nn.ConstantPad2d(1, 1.0), IMG),
    "padding of features": (Fn(lambda x: F.pad(x, (1, 2, 0, 1))), SEQ),
    "reflection": (nn.ReflectionPad2d(1), IMG),
    "replication": (nn.ReplicationPad2d(1), IMG),
    "circular": (nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMG),
    "enlarged": (nn.Upsample(scale_factor=2), IMG),
    "enlarged unevenly": (nn.Upsample((9, 11)), IMG),
    "shuffled pixels": (nn.PixelShuffle(2), IMG),
    "conv 1d": (nn.Conv1d(5, 2, 3, padding=1, stride=2), SEQ),
    "conv transposed": (nn.ConvTranspose2d(4, 2, 3, 2, 1, 1), IMG),
    "lstm": (First(nn.LSTM(6, 3, batch_first=True)), SEQ),
    "lstm of two layers, both ways": (First(nn.LSTM(6, 3, 2, batch_first=True, bidirectional=True)), SEQ),
    "lstm without bias": (First(nn.LSTM(6, 3, batch_first=True, bias=False)), SEQ),
    "lstm with a trained state": (Stateful(nn.LSTM), SEQ),
    "lstm after another": (Later(), SEQ),
    "gru": (First(nn.GRU(6, 3, batch_first=True)), SEQ),
    "gru of two layers, both ways": (First(nn.GRU(6, 3, 2, batch_first=True, bidirectional=True)), SEQ),
    "gru with a trained state": (Stateful(nn.GRU), SEQ),
    "rnn": (First(nn.RNN(6, 3, batch_first=True)), SEQ),
    "rnn with relu": (First(nn.RNN(6, 3, batch_first=True, nonlinearity="relu")), SEQ),
}


def argument_of(module: Any) -> str:
    """Name of the one input of a module."""
    (found,) = (k for k in ("x", "input", "src") if k in module.forward.__code__.co_varnames[:2])
    return found


@pytest.mark.parametrize("name", LATER)
def test_layer(name: str) -> None:
    module, shape = LATER[name]
    nodes = {"div": (-8.0, 8.0)} if isinstance(module, nn.Softsign) else {}
    compare(module, {argument_of(module): shape}, ranges=nodes)


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


# the core operators fold the batch into other axes, or write into parts of a value
ONLY_AS_WRITTEN = (
    "einsum",
    "lstm",
    "gru",
    "rnn",
    "instance norm",
    "weights from the left",
    "batch moved through",
)


@pytest.mark.parametrize(
    "name", [n for n in LATER if not n.startswith((*ONLY_AS_WRITTEN, "circular", "RReLU", "RMSNorm"))]
)
def test_layer_in_core_aten(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from privinfer.graph import from_torch as importer

    as_written = importer._export

    def export(*arguments: Any) -> Any:
        return as_written(*arguments).run_decompositions()

    monkeypatch.setattr(importer, "_export", export)
    test_layer(name)


class Bent(nn.Module):
    """An activation of one's own, which torch.export could not even read."""

    def forward(self, x: Any) -> Any:
        return torch.from_numpy(bent(x.detach().numpy()))


def bent(x: Any) -> Any:
    """``x sin x`` within its range."""
    return x * np.sin(x)


def test_a_function_of_ones_own() -> None:
    net = nn.Sequential(nn.Linear(6, 4), Bent(), nn.Linear(4, 2))
    model = compare(net, {"input": VEC}, functions={"1": (bent, -16, 16)})
    assert ops(model) == ["Linear", "Function", "Linear"]
    op = model.architecture.nodes[1].op
    assert isinstance(op, ir.Function)
    assert (op.low, op.high, op.left, op.right) == (-16, 16, None, None)
    assert op.name.startswith("1:")
    assert "forward" not in net[1].__dict__


def test_functions_of_one_path_do_not_get_in_each_others_way() -> None:
    net = nn.Sequential(nn.Linear(6, 4), Bent())
    first, second = (from_torch(net, {"input": VEC}, functions={"1": (f, -4, 4)}) for f in (np.sin, np.cos))
    x = {"input": np.zeros((1, 6))}
    inner = net[0](torch.zeros(1, 6)).detach().numpy()
    np.testing.assert_allclose(reference.run(first, x)["output"], np.sin(inner), atol=1e-6)
    np.testing.assert_allclose(reference.run(second, x)["output"], np.cos(inner), atol=1e-6)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"7": (bent, -1, 1)}, "functions: there is no module '7'"),
        ({"1": bent}, r"functions\['1'\] has to be \(callable, low, high\)"),
        ({"1": (bent, 1, -1)}, r"functions\['1'\] has to be a callable and a finite range"),
        ({"1": (bent, 0, float("inf"))}, r"functions\['1'\] has to be a callable and a finite range"),
        ({"1": ("bent", 0, 1)}, r"functions\['1'\] has to be a callable and a finite range"),
        ({"1": (lambda x: x[0], 0, 1)}, r"functions\['1'\] has to give finite values"),
        ({"1": (lambda x: x / 0, 0, 1)}, r"functions\['1'\] has to give finite values"),
        ({"1": (lambda x: {}[x], 0, 1)}, r"functions\['1'\] raises TypeError on its range"),
    ],
)
def test_functions_that_do_not_do(functions: Any, message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(ConfigError, match=message):
        from_torch(nn.Sequential(nn.Linear(6, 4), Bent()), {"input": VEC}, functions=functions)


def test_attention_is_put_back_as_it_was() -> None:
    net = Attends(need_weights=False)
    from_torch(net, {"x": SEQ})
    assert "forward" not in net.layer.__dict__
    with pytest.raises(ModelUnsupported):
        from_torch(Attends(key_padding_mask=torch.zeros(1, 5) > 0), {"x": SEQ})


def test_a_range_for_a_node() -> None:
    net = Fn(lambda x, w: torch.log(x @ w), 6, 6)
    with pytest.raises(ModelUnsupported, match=r"declare what goes in: ranges=\{'log': \(low, high\)\}"):
        from_torch(net, {"x": VEC})
    model = from_torch(net, {"x": VEC}, {"x": (0, 1), "log": (0.25, 8)})
    (op,) = (n.op for n in model.architecture.nodes if isinstance(n.op, ir.Function))
    assert (op.low, op.high) == (0.25, 8)
    with pytest.raises(ConfigError, match="a range is given for 'logg', which is no input and no node"):
        from_torch(net, {"x": VEC}, {"logg": (0.25, 8)})


def test_masks_stay_secret() -> None:
    """Which places a mask of the module's hides does not show in the architecture, nor do its numbers."""
    one, other = Masked(), Masked()
    other.mask[0, 1] = False
    digests = {from_torch(m, {"x": SEQ}).architecture.digest() for m in (one, other)}
    assert len(digests) == 1


def test_what_the_code_makes_is_public() -> None:
    model = from_torch(Fn(lambda x: x * torch.full((1,), 0.5) + torch.ones(())), {"x": VEC})
    assert ops(model) == ["Multiply", "Shift"]
    assert not model.parameters


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
    "padded keys": (
        Attends(key_padding_mask=torch.zeros(1, 5, dtype=torch.bool)),
        SEQ,
        "torch.export cannot read the module: attention with a key padding mask",
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
