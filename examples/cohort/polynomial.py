"""Make the model whose activations are polynomials, which homomorphic schemes can compute, from `risk.onnx`.

Run `python examples/cohort/polynomial.py`: it rewrites `risk-polynomial.onnx` and `POLYNOMIAL_CARD.md`.
The weights are tuned on patients drawn from the training pools, towards what `risk.onnx` answers and the
simulated outcomes; validation patients choose between settings; test patients are drawn once, at the end.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import cohort
import numpy as np
import torch
from card import Result, evaluate

import privinfer
from privinfer.graph import ir, reference
from privinfer.graph.to_onnx import to_onnx

FOLDER = Path(__file__).parent
MODEL = FOLDER / "risk.onnx"
POLYNOMIAL = FOLDER / "risk-polynomial.onnx"
CARD = FOLDER / "POLYNOMIAL_CARD.md"
SEED = 1
DEGREE = 3
DRAWS = 2  # of 4,000 patients each
SETTINGS = ((6, 2e-3), (12, 1e-3))  # epochs and rate

Floats = cohort.Floats
Rows = dict[str, Floats]


def varied(rows: Rows, rng: np.random.Generator) -> Rows:
    """Vary exposure and framing of pictures, and blur and drop tests, as `train.py` does."""
    count = len(rows["xray"])
    gain, offset = 0.8 + 0.4 * rng.random((count, 1, 1, 1)), 0.2 * rng.random((count, 1, 1, 1)) - 0.1
    moves = rng.integers(-2, 3, (count, 2))
    pictures = [np.roll(x, tuple(move), (1, 2)) for x, move in zip(rows["xray"], moves, strict=True)]
    blood = rows["blood"] + 0.5 * rng.normal(size=rows["blood"].shape)
    return {
        "xray": np.clip(np.stack(pictures) * gain + offset, *cohort.RANGES["xray"]),
        "dna": rows["dna"],
        "blood": np.clip(blood * (rng.random(blood.shape) > 0.3), *cohort.RANGES["blood"]),
    }


def training_rows() -> tuple[Rows, cohort.Ints]:
    """Patients of the training pools, each once as it is and once varied."""
    rng = np.random.default_rng(SEED)
    rows: list[Rows] = []
    outcomes = []
    for draw in range(DRAWS):
        patients = cohort.load("train", seed=cohort.SEED + 1 + draw)
        for inputs in (patients.inputs(), varied(patients.inputs(), rng)):
            rows.append(inputs)
            outcomes.append(patients.y)
    return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}, np.concatenate(outcomes)


def logits(model: ir.Model, rows: Rows) -> Floats:
    """The model in float64, (n,)."""
    return np.asarray(reference.run(model, rows)["risk"][:, 0])


def loss(y: cohort.Ints, logit: Floats) -> float:
    """Mean cross entropy."""
    return float(np.logaddexp(0.0, np.where(y == 1, -logit, logit)).mean())


def reach(model: ir.Model, rows: Rows) -> float:
    """How far out values go in polynomials' ranges; 1 is an end."""
    values: Rows = {}
    reference.run(model, rows, values.__setitem__)
    found = 0.0
    for node in model.architecture.nodes:
        if isinstance(node.op, ir.Polynomial):
            x, op = values[node.inputs[0]], node.op
            found = max(found, float(np.abs((2 * x - op.low - op.high) / (op.high - op.low)).max()))
    return found


def write_card(results: list[Result], told: list[str], chosen: tuple[int, float], digest: str) -> None:
    """Write `POLYNOMIAL_CARD.md`."""
    table = "\n".join(r.row() for r in results)
    lines = "\n".join(told)
    CARD.write_text(
        f"""# Model card: `risk-polynomial.onnx`

Written by `polynomial.py`; do not edit by hand.

`risk.onnx` with a polynomial of degree {DEGREE} or less in the place of every ReLU, for homomorphic
encryption, and weights tuned to make up for it. All that `MODEL_CARD.md` says of data, use and caveats holds
here: **a demonstration, not a medical device; the linkage of the sources is synthetic.** The file holds an
operator of privinfer's own, `privinfer.Polynomial`; other runtimes do not know it.

## Results on 200 synthetic test patients

| model | AUC | standard error | accuracy |
| --- | --- | --- | --- |
{table}

## Polynomials

{lines}

## Tuning

- `privinfer.to_polynomial`, seed {SEED}, on {DRAWS} drawings of 4,000 patients from the training pools, each
  patient once as drawn and once with a varied picture and blood row, towards the answers of `risk.onnx` and
  the simulated outcomes. Validation patients chose {chosen[0]} epochs at rate {chosen[1]:g}; no choice was
  made on test patients.
- Ranges and degrees are public; ends are powers of two. Coefficients follow from these and from ReLU.
- PyTorch on one CPU core; another version or another processor may give slightly different weights.

SHA-256 of `risk-polynomial.onnx`: `{digest}`
""",
        encoding="utf-8",
    )


def main() -> None:
    """Tune, choose, export, and only then look at the test patients."""
    torch.set_num_threads(1)
    original = privinfer.from_onnx(MODEL)
    rows, y = training_rows()
    validation = cohort.load("validation")
    best = None
    for epochs, rate in SETTINGS:
        start = time.perf_counter()
        made, report = privinfer.to_polynomial(
            original, rows, labels=y, degree=DEGREE, epochs=epochs, rate=rate, held_out=0.1, seed=SEED
        )
        found = loss(validation.y, logits(made, validation.inputs()))
        seconds = time.perf_counter() - start
        print(f"{epochs} epochs at {rate:g}: validation loss {found:.4f}, {seconds:.0f} s", flush=True)
        print(report)
        if best is None or found < best[0]:
            best = found, made, report, (epochs, rate)
    assert best is not None
    _, made, report, chosen = best
    blob = to_onnx(made).SerializeToString(deterministic=True)
    POLYNOMIAL.write_bytes(blob)

    # from here on the file, as others load it
    test = cohort.load("test")
    loaded = privinfer.from_onnx(POLYNOMIAL, calibration=validation.inputs())
    before, after = logits(original, test.inputs()), logits(loaded, test.inputs())
    results = [evaluate("`risk.onnx`", test.y, before), evaluate("`risk-polynomial.onnx`", test.y, after)]
    far = {name: reach(loaded, p.inputs()) for name, p in (("validation", validation), ("test", test))}
    if max(far.values()) > 1:
        raise SystemExit(f"values leave their ranges: {far}")
    alike, apart = float(((before > 0) == (after > 0)).mean()), np.abs(before - after)
    told = ["| node | degree | range | off by | basis |", "| --- | --- | --- | --- | --- |"]
    for a in report.activations:
        basis = "proven by intervals" if a.proven else "calibrated"
        told.append(f"| {a.node} | {a.degree} | [{a.low:g}, {a.high:g}] | {a.error:.3f} | {basis} |")
    told += [
        "",
        f"With -1 and 1 for the ends of each range, values reach {far['validation']:.3f} on all validation",
        f"patients and {far['test']:.3f} on all test patients: none leaves its range. The two models decide",
        f"alike on {alike:.3f} of test patients; logits differ by {apart.max():.2f} at most, "
        f"{apart.mean():.2f} on average.",
    ]
    write_card(results, told, chosen, hashlib.sha256(blob).hexdigest())
    print("\n".join(r.row() for r in results))
    print("\n".join(told))
    print(f"{len(blob):,} bytes; chosen {chosen}")


if __name__ == "__main__":
    main()
