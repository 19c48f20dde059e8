"""Layers of PyTorch one by one, against torch: the older half is in test_import_torch.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, reference
from privinfer.graph.from_torch import from_torch

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from tests.unit.test_import_torch import IMG, SEQ, VEC, Fn, argument_of, compare, ops  # noqa: E402


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
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
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


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    module, shape = LAYERS[name]
    nodes = {"div": (-8.0, 8.0)} if isinstance(module, nn.Softsign) else {}
    compare(module, {argument_of(module): shape}, ranges=nodes)


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
    "name", [n for n in LAYERS if not n.startswith((*ONLY_AS_WRITTEN, "circular", "RReLU", "RMSNorm"))]
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
    with pytest.raises(ModelUnsupported, match="attention with a key padding mask"):
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
