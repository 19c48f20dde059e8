"""Small torch models of the kinds people train: what the importer, the ranges and the oracle are tried on.

Sizes are small, structures are true. Weights are torch's default initialisation under a fixed seed, with
statistics of batch normalisation that differ from zero and one; nothing here was trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """The layers and blocks of ResNet-18; `width` is 64 in the original."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        pairs = itertools.pairwise(sizes)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(Residual(i, o, 1 if k == 0 else 2), Residual(o, o))
                for k, (i, o) in enumerate(pairs)
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class DenseBlock(nn.Module):
    """DenseNet: each layer sees what all layers before it made."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + k * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + k * growth, growth, 3, padding=1, bias=False),
            )
            for k in range(layers)
        )

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet(growth: int = 4) -> nn.Module:
    """Two dense blocks with a transition between them."""
    start, half = 2 * growth, 2 * growth + 3 * growth
    end = half // 2
    return nn.Sequential(
        nn.Conv2d(1, start, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(start), nn.ReLU(),
        nn.MaxPool2d(2), DenseBlock(start, growth, 3),
        nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, end, 1, bias=False), nn.AvgPool2d(2),
        DenseBlock(end, growth, 2), nn.BatchNorm2d(end + 2 * growth), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(end + 2 * growth, 3),
    )  # fmt: skip


class Attention(nn.Module):
    """Self-attention over tokens, written out the way most vision transformers do."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Any) -> Any:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Pre-norm transformer block with GELU."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, blocks, a head."""

    def __init__(self, size: int = 32, patch: int = 8, dim: int = 32, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, 2 * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class MultiModal(nn.Module):
    """X-ray, genotypes and blood values as tokens that attend to each other; a risk at the end."""

    def __init__(self, dim: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.xray = nn.Conv2d(1, dim, 14, 14)
        self.dna = nn.Linear(16, dim)
        self.blood = nn.Linear(12, dim)
        layer = nn.TransformerEncoderLayer(
            dim, 2, 2 * dim, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.source = nn.Parameter(0.02 * torch.randn(3, dim))
        self.risk = nn.Linear(dim, 1)

    def forward(self, xray: Any, dna: Any, blood: Any) -> Any:
        image = self.xray(xray).flatten(2).transpose(1, 2) + self.source[0]
        genes = self.dna(dna.unflatten(1, (4, 16))) + self.source[1]
        values = self.blood(blood).unsqueeze(1) + self.source[2]
        tokens = self.encoder(torch.cat([image, genes, values], 1))
        return {"risk": torch.sigmoid(self.risk(tokens.mean(1)))}


class Recurrent(nn.Module):
    """A recurrent layer over a time series; its last state decides."""

    def __init__(self, kind: type[nn.Module], features: int = 5, hidden: int = 8, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(features, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden * (2 if options.get("bidirectional") else 1), 1)

    def forward(self, x: Any) -> Any:
        return torch.sigmoid(self.head(self.rnn(x)[0][:, -1]))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"), "silu": nn.SiLU, "mish": nn.Mish,
    "softplus": nn.Softplus, "elu": nn.ELU, "selu": nn.SELU, "celu": lambda: nn.CELU(0.5),
    "leaky_relu": nn.LeakyReLU, "prelu": nn.PReLU, "relu6": nn.ReLU6, "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish, "hardtanh": nn.Hardtanh, "softsign": nn.Softsign,
    "log_sigmoid": nn.LogSigmoid,
}  # fmt: skip


def mlp(activation: str, inputs: int = 10) -> nn.Module:
    """Two hidden layers with one activation."""
    make = ACTIVATIONS[activation]
    return nn.Sequential(nn.Linear(inputs, 16), make(), nn.Linear(16, 8), make(), nn.Linear(8, 2))


def lived_in(module: nn.Module) -> nn.Module:
    """Give statistics of batch normalisation that are as different as those of a trained model."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0.0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(m.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(m.weight, 0.5, 1.0)
            nn.init.normal_(m.bias, 0.0, 0.1)
    return module.eval()


@dataclass(frozen=True)
class Exhibit:
    """A model, its inputs, and how its ranges are declared.

    Attributes
    ----------
    make : callable
        The module; call it through :func:`build`, which fixes the seed.
    inputs : mapping
        For each input its shape without the batch, and its range.
    calibrated : bool
        Ranges come from rows, for intervals do not hold.
    nodes : mapping
        Ranges of what goes into functions that have no straight tails.
    options : mapping
        For ``privinfer.from_torch``.
    """

    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[tuple[int, ...], float, float]]
    calibrated: bool = False
    nodes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the module, always with the same weights."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return lived_in(self.make())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As from_torch takes them."""
        return {k: (1, *shape) for k, (shape, _, _) in self.inputs.items()}

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """As from_torch takes them."""
        return {k: (low, high) for k, (_, low, high) in self.inputs.items()} | dict(self.nodes)

    def rows(self, count: int, seed: int) -> dict[str, np.ndarray]:
        """Random rows in range, in float32, which torch computes with."""
        rng = np.random.default_rng(seed)
        return {
            k: rng.uniform(low, high, (count, *shape)).astype(np.float32)
            for k, (shape, low, high) in self.inputs.items()
        }


IMAGE = {"x": ((3, 32, 32), 0.0, 1.0)}
SERIES = {"x": ((8, 5), -1.0, 1.0)}
TABLE = {"input": ((10,), -1.0, 1.0)}
PATIENT = {"xray": ((1, 28, 28), 0.0, 1.0), "dna": ((64,), 0.0, 2.0), "blood": ((12,), -1.0, 1.0)}


def recurrent(kind: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    """A maker of recurrent models."""
    return lambda: Recurrent(kind, **options)


def sequence(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A maker of layers in a row."""
    return lambda: nn.Sequential(*(make() for make in layers))


def logistic() -> nn.Module:
    """Logistic regression."""
    return nn.Sequential(nn.Linear(10, 1), nn.Sigmoid())


ZOO: dict[str, Exhibit] = {
    "logistic regression": Exhibit(logistic, TABLE),
    "resnet18": Exhibit(lambda: ResNet18(8), IMAGE, calibrated=True),
    "densenet": Exhibit(densenet, {"input": ((1, 32, 32), 0.0, 1.0)}),
    "vision transformer": Exhibit(VisionTransformer, IMAGE, calibrated=True),
    "multi-modal transformer": Exhibit(MultiModal, PATIENT, calibrated=True),
    "lstm": Exhibit(recurrent(nn.LSTM), SERIES),
    "gru": Exhibit(recurrent(nn.GRU), SERIES),
    "rnn": Exhibit(recurrent(nn.RNN), SERIES),
    "two-way lstm": Exhibit(recurrent(nn.LSTM, bidirectional=True, num_layers=2), SERIES),
    **{
        f"mlp {name}": Exhibit(
            lambda n=name: mlp(n),  # type: ignore[misc]
            TABLE,
            nodes={"1": (-8.0, 8.0), "3": (-8.0, 8.0)} if name == "softsign" else {},
        )
        for name in ACTIVATIONS
    },
}

NAMES: Sequence[str] = tuple(ZOO)
