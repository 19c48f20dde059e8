"""Train the startup's model on synthetic patients, bound its fixed-point error and export it to ONNX.

Run `python examples/cohort/train.py`: it rewrites `risk.onnx` and `MODEL_CARD.md`. The linkage between
the sources is synthetic (see `cohort.py`); what the fused model gains over a single source is an artefact
of that drawing. Validation patients choose the epoch; test patients are drawn once, at the end.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import cohort
import numpy as np
import onnx
import onnxruntime
import torch
from bounds import (
    BN_EPSILON,
    INPUT_ERROR,
    LAYER_ERROR,
    PADDING,
    PICTURE,
    STEP,
    STRIDE,
    Weights,
    preactivation_bound,
    weight_rounding,
    worst_case_error,
)
from card import auc, evaluate, write_card
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

SEED = 1
SOURCES = ("xray", "dna", "blood")
EPOCHS = 60
PATIENCE = 15
BATCH = 100
BRANCH_DROP = 0.15
BOUND_TARGET = 1.5e-3
BOUND_PENALTY = 60.0  # loss per unit of worst-case error above the target
ERROR_LIMIT = 4e-3
RANGE_LIMIT = 2.0**13
RIDGE = 10.0
OPSET = 17
MODEL = Path(__file__).parent / "risk.onnx"

torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)  # the order of sums, hence the weights, must not depend on the machine's cores


class Net(nn.Module):
    """Three branches, one for each data owner, joined for one logit.

    Parameters
    ----------
    tests
        Number of blood tests.
    use
        Sources the net may see; the branches of the others put out zeros.
    """

    def __init__(self, tests: int, use: tuple[str, ...] = SOURCES) -> None:
        super().__init__()
        self.use = use
        self.conv1 = nn.Conv2d(1, 8, 5, stride=STRIDE, padding=PADDING["conv1"], bias=False)
        self.bn = nn.BatchNorm2d(8, eps=BN_EPSILON)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=STRIDE, padding=PADDING["conv2"])
        self.xray = nn.Linear(16 * 7 * 7, 32)
        self.dna = nn.Linear(944, 16)
        self.blood = nn.Linear(tests, 16)
        self.joint = nn.Linear(64, 16)
        self.risk = nn.Linear(16, 1)

    def forward(self, xray: Tensor, dna: Tensor, blood: Tensor) -> Tensor:
        """Return logits (n,)."""
        x = functional.relu(self.bn(self.conv1(xray)))
        x = functional.relu(self.conv2(x)).flatten(1)
        branches = {"xray": self.xray(x), "dna": self.dna(dna), "blood": self.blood(blood)}
        parts = []
        for name, branch in branches.items():
            kept = torch.full((len(branch), 1), float(name in self.use))
            if self.training and self.use == SOURCES:
                # Now and then a patient lacks a source, so that the net cannot lean on one alone.
                kept = kept * (torch.rand(len(branch), 1) > BRANCH_DROP)
            parts.append(functional.relu(branch) * kept)
        logit: Tensor = self.risk(functional.relu(self.joint(torch.cat(parts, 1))))
        return logit[:, 0]

    def error_bound(self) -> Tensor:
        """Return `bounds.worst_case_error`, differentiably, to be kept small during training."""
        scale = self.bn.weight / torch.sqrt(self.bn.running_var + BN_EPSILON)
        kernel = self.conv1.weight * scale[:, None, None, None]
        e = torch.full((1, *PICTURE), INPUT_ERROR["xray"])
        e = functional.conv2d(e, kernel.abs(), None, STRIDE, PADDING["conv1"]) + LAYER_ERROR
        e = functional.conv2d(e, self.conv2.weight.abs(), None, STRIDE, PADDING["conv2"]) + LAYER_ERROR
        branches = [
            self.xray.weight.abs() @ e.flatten(),
            self.dna.weight.abs().sum(1) * INPUT_ERROR["dna"],
            self.blood.weight.abs().sum(1) * INPUT_ERROR["blood"],
        ]
        e = torch.cat(branches) + LAYER_ERROR
        e = self.joint.weight.abs() @ e + LAYER_ERROR
        return (self.risk.weight.abs() @ e + LAYER_ERROR)[0]


def start_from_score(net: Net) -> None:
    """Set the DNA layer to hinges of the polygenic score, so that 944 weights need not be learnt from y.

    The score differs between ancestries while the outcome follows it within each, so the direction is the
    ridge regression of the standardised score z on the training people's dosages.
    """
    panel = cohort.genotypes()
    pool = panel.pool("train")
    dosages = panel.dosages[pool].astype(np.float64)
    mean = dosages.mean(0)
    centred = dosages - mean
    gram = centred.T @ centred + RIDGE * np.eye(centred.shape[1])
    direction = np.linalg.solve(gram, centred.T @ panel.z[pool])
    signs = np.repeat([1.0, -1.0], 8)
    knots = np.tile(np.linspace(-2.5, 1.0, 8), 2)  # unit k puts out max(0, sign * z - knot)
    with torch.no_grad():
        net.dna.weight.copy_(torch.from_numpy(np.outer(signs, direction)))
        net.dna.bias.copy_(torch.from_numpy(-signs * (mean @ direction) - knots))


def tensors(patients: cohort.Cohort) -> tuple[list[Tensor], Tensor]:
    """Return the inputs in the order of `SOURCES`, and the outcomes."""
    inputs = patients.inputs()
    return [torch.from_numpy(inputs[s]).float() for s in SOURCES], torch.from_numpy(patients.y).float()


def augment(xray: Tensor, blood: Tensor) -> tuple[Tensor, Tensor]:
    """Vary exposure and framing of pictures, and blur and drop tests, within the declared ranges."""
    n = len(xray)
    gain, offset = 0.8 + 0.4 * torch.rand(n, 1, 1, 1), 0.2 * torch.rand(n, 1, 1, 1) - 0.1
    dy, dx = (int(torch.randint(-2, 3, ())) for _ in range(2))
    xray = torch.roll(xray, (dy, dx), (2, 3)) * gain + offset
    blood = (blood + 0.5 * torch.randn_like(blood)) * (torch.rand_like(blood) > 0.3)
    return xray.clamp(*cohort.RANGES["xray"]), blood.clamp(*cohort.RANGES["blood"])


def train(use: tuple[str, ...]) -> tuple[Net, int]:
    """Train a net on the given sources; return it as it was at its best validation loss, and that epoch."""
    torch.manual_seed(SEED)
    validation, outcome = tensors(cohort.load("validation"))
    net = Net(validation[2].shape[1], use)
    start_from_score(net)
    slow = list(net.dna.parameters())
    fast = [p for name, p in net.named_parameters() if not name.startswith("dna.")]
    optimiser = torch.optim.AdamW(
        [
            {"params": fast, "lr": 1e-3, "weight_decay": 1.0},
            {"params": slow, "lr": 1e-5, "weight_decay": 0.0},
        ]
    )
    best, best_epoch, best_state = float("inf"), 0, net.state_dict()
    for epoch in range(1, EPOCHS + 1):
        net.train()
        # A new drawing each epoch: the same training pools, joined to other strangers.
        inputs, y = tensors(cohort.load("train", seed=cohort.SEED + epoch))
        for rows in torch.randperm(len(y)).split(BATCH):
            xray, dna, blood = (x[rows] for x in inputs)
            xray, blood = augment(xray, blood)
            loss = functional.binary_cross_entropy_with_logits(net(xray, dna, blood), y[rows])
            loss = loss + BOUND_PENALTY * functional.relu(net.error_bound() - BOUND_TARGET)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        net.eval()
        with torch.no_grad():
            score = float(functional.binary_cross_entropy_with_logits(net(*validation), outcome))
        if score < best:
            best, best_epoch = score, epoch
            best_state = {name: value.clone() for name, value in net.state_dict().items()}
        if epoch == best_epoch + PATIENCE:
            break
    net.load_state_dict(best_state)
    return net.eval(), best_epoch


def snap(net: Net) -> None:
    """Move every folded weight to a multiple of 2^-16, so that fixed point encodes it without error."""

    def nearest(x: Tensor) -> Tensor:
        return torch.round(x / STEP) * STEP

    with torch.no_grad():
        for layer in (net.conv2, net.xray, net.dna, net.blood, net.joint, net.risk):
            layer.weight.copy_(nearest(layer.weight))
            layer.bias.copy_(nearest(layer.bias))
        # Here it is the product with the batch norm's scale that has to lie on the grid.
        scale = net.bn.weight.double() / torch.sqrt(net.bn.running_var.double() + BN_EPSILON)
        shift = net.bn.running_mean.double() * scale
        per_channel = scale[:, None, None, None]
        net.conv1.weight.copy_(nearest(net.conv1.weight * per_channel) / per_channel)
        net.bn.bias.copy_(nearest(net.bn.bias - shift) + shift)


def weights_of(net: Net) -> dict[str, NDArray[np.float32]]:
    """Return the weights under the names they bear in the ONNX file."""
    names = {"bn.weight": "bn.scale", "bn.running_mean": "bn.mean", "bn.running_var": "bn.var"}
    state = {names.get(name, name): value.numpy() for name, value in net.state_dict().items()}
    del state["bn.num_batches_tracked"]
    return state


def build_onnx(weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Write the network down as an ONNX graph with a symbolic batch; the batch norm is left unfolded."""
    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))
        return output

    def conv(name: str, x: str, terms: list[str]) -> str:
        kernel = list(weights[f"{name}.weight"].shape[2:])
        pads, strides = [PADDING[name]] * 4, [STRIDE] * 2
        return node(
            "Conv", [x, *terms], f"{name}.conv", kernel_shape=kernel, pads=pads, strides=strides, group=1
        )

    def dense(name: str, x: str, output: str) -> str:
        return node("Gemm", [x, f"{name}.weight", f"{name}.bias"], output, transB=1)

    def dense_relu(name: str, x: str) -> str:
        return node("Relu", [dense(name, x, f"{name}.dense")], f"{name}.relu")

    x = conv("conv1", "xray", ["conv1.weight"])
    moments = ["bn.scale", "bn.bias", "bn.mean", "bn.var"]
    x = node("BatchNormalization", [x, *moments], "bn.out", epsilon=BN_EPSILON)
    x = node("Relu", [x], "conv1.relu")
    x = node("Relu", [conv("conv2", x, ["conv2.weight", "conv2.bias"])], "conv2.relu")
    x = node("Flatten", [x], "flat", axis=1)
    branches = [dense_relu("xray", x), dense_relu("dna", "dna"), dense_relu("blood", "blood")]
    x = node("Concat", branches, "branches", axis=1)
    dense("risk", dense_relu("joint", x), "risk")

    sizes = {"xray": PICTURE, **{name: weights[f"{name}.weight"].shape[1:] for name in ("dna", "blood")}}
    graph = helper.make_graph(
        nodes,
        "risk",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])
            for name, shape in sizes.items()
        ],
        [helper.make_tensor_value_info("risk", onnx.TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph, producer_name="privinfer example", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )
    # ranges travel with the model, so that nobody has to repeat them
    ranges = {f"privinfer.range.{k}": f"{low:g}:{high:g}" for k, (low, high) in cohort.RANGES.items()}
    helper.set_model_props(model, ranges)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, check, export, and only then look at the test patients."""
    start = time.perf_counter()
    alone = [train((source,))[0] for source in SOURCES]
    net, epoch = train(SOURCES)
    snap(net)
    weights = weights_of(net)
    exact: Weights = {name: value.astype(np.float64) for name, value in weights.items()}
    bound, largest = worst_case_error(exact), preactivation_bound(exact, cohort.RANGES)
    if bound >= ERROR_LIMIT or largest >= RANGE_LIMIT or weight_rounding(exact) > STEP / 100:
        raise SystemExit(f"does not suit fixed point: error {bound:.2e}, range {largest:.1f}")
    blob = build_onnx(weights).SerializeToString(deterministic=True)
    MODEL.write_bytes(blob)
    seconds = time.perf_counter() - start

    test = cohort.load("test")
    inputs, _ = tensors(test)
    session = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in zip(SOURCES, inputs, strict=True)}
    (risk,) = session.run(["risk"], feed)
    with torch.no_grad():
        difference = float(np.abs(net(*inputs).numpy() - risk[:, 0]).max())
        if difference > 1e-4:
            raise SystemExit(f"ONNX and PyTorch differ by {difference}")
        results = [evaluate(s, test.y, n(*inputs).numpy()) for s, n in zip(SOURCES, alone, strict=True)]
    results.append(evaluate("all", test.y, risk[:, 0]))
    write_card(
        results,
        score_auc=auc(test.y, cohort.genotypes().z[test.person]),
        bound=bound,
        largest=largest,
        epoch=epoch,
        seeds=f"Seeds: {SEED} for the net, {cohort.SEED} for the drawing.",
        patients=len(test),
        digest=hashlib.sha256(blob).hexdigest(),
    )
    print("| sources | AUC | standard error | accuracy |")
    print("\n".join(result.row() for result in results))
    print(f"worst-case fixed-point error of the logit {bound:.3e} (limit {ERROR_LIMIT:.0e})")
    print(f"largest pre-activation {largest:.1f} (limit {RANGE_LIMIT:.0f})")
    print(f"ONNX against PyTorch {difference:.1e}; {len(blob):,} bytes; trained in {seconds:.0f} s")


if __name__ == "__main__":
    main()
