"""Figures of merit of the example's model, and the model card that states them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

CARD = Path(__file__).parent / "MODEL_CARD.md"


@dataclass(frozen=True)
class Result:
    """How well a net tells the simulated outcomes apart.

    Attributes
    ----------
    name
        Sources the net used.
    auc, error
        Area under the ROC curve, and one standard error of it (Hanley and McNeil, 1982).
    accuracy
        Share of patients on the right side of logit 0.
    """

    name: str
    auc: float
    error: float
    accuracy: float

    def row(self) -> str:
        """Return a row of the table in the card."""
        return f"| {self.name} | {self.auc:.4f} | {self.error:.3f} | {self.accuracy:.3f} |"


def auc(y: ArrayLike, score: ArrayLike) -> float:
    """Return the probability that a positive outscores a negative, ties counting half.

    Parameters
    ----------
    y
        (n,) outcomes, 0 or 1, both present.
    score
        (n,) scores.

    Returns
    -------
    float
        Area under the ROC curve.
    """
    outcome, value = np.asarray(y).astype(bool), np.asarray(score)
    difference = value[outcome][:, None] - value[~outcome]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def evaluate(name: str, y: ArrayLike, logit: ArrayLike) -> Result:
    """Measure logits (n,) against outcomes (n,)."""
    outcome = np.asarray(y).astype(bool)
    a, positives = auc(outcome, logit), int(outcome.sum())
    negatives = len(outcome) - positives
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = a * (1 - a) + (positives - 1) * (q1 - a * a) + (negatives - 1) * (q2 - a * a)
    accuracy = float(((np.asarray(logit) > 0) == outcome).mean())
    return Result(name, a, (variance / (positives * negatives)) ** 0.5, accuracy)


def write_card(
    results: list[Result],
    *,
    score_auc: float,
    bound: float,
    largest: float,
    epoch: int,
    seeds: str,
    patients: int,
    digest: str,
) -> None:
    """Write `MODEL_CARD.md`.

    Parameters
    ----------
    results
        On test patients, the shipped net last.
    score_auc
        AUC on test patients of the score z that the outcome was simulated from.
    bound
        Worst-case fixed-point error of the logit.
    largest
        Bound of every |pre-activation|.
    epoch
        Epoch that validation chose, from 1.
    seeds
        Of training and of the drawing, in words.
    patients
        Number of test patients.
    digest
        SHA-256 of `risk.onnx`.
    """
    table = "\n".join(result.row() for result in results)
    CARD.write_text(
        f"""# Model card: `risk.onnx`

Written by `train.py`; do not edit by hand.

**A demonstration, not a medical device.** The patients are synthetic: each joins an X-ray, a genotype and
a blood row of three different people through a simulated outcome (`cohort.py` gives the recipe). The model
says nothing about any real person and must not be used for care.

## What it computes

Inputs `xray` (batch, 1, 28, 28) in [0, 1], `dna` (batch, 944) copies of the effect alleles of PGS000586,
`blood` (batch, 24) standardised admission bloods in [-4, 4]. Output `risk` (batch, 1), the logit of the
simulated outcome. Each source has a branch of its own (two convolutions and a dense layer; one dense layer;
one dense layer); two dense layers join them. Activations are ReLU.

## Results on {patients} synthetic test patients

| sources | AUC | standard error | accuracy |
| --- | --- | --- | --- |
{table}

Rows with one source are nets of the same shape trained with the other branches at zero. The standardised
polygenic score z, from which the outcome was simulated, itself has AUC {score_auc:.3f} on these patients.
Given the simulated outcome, the sources are drawn independently of each other: **the gain of fusion is an
artefact of this drawing.** The standard error counts patients as independent, but they are drawn with
replacement from 413 pictures, 499 people and 64 blood rows, so the true uncertainty is larger.

## Fixed point

- Worst-case error of the logit with 16 fractional bits, over all inputs: {bound:.2e}.
- Largest possible pre-activation for inputs in their ranges: {largest:.1f}.
- Weights, after the batch norm is folded into the first convolution, are multiples of 2^-16 (up to float32
  rounding), so that encoding them adds no error.

Both bounds come from the weights alone (`bounds.py`); training penalises the first.

## Training

- {seeds}
- Every epoch draws 4,000 patients anew from the training pools. Validation patients chose epoch
  {epoch} and the settings; no choice was made on test patients.
- Pictures are varied in exposure and framing, bloods are blurred and dropped at random, whole branches are
  dropped at random. The DNA layer starts from the polygenic score.
- PyTorch on one CPU core; another version or another processor may give slightly different weights.

## Caveats

- X-rays: children of one hospital; the official test pictures come from a different draw than the training
  pictures, and a model loses accuracy there.
- Bloods: one hospital, first wave of COVID-19, far more deaths than in any ordinary population.
- DNA: no outcome exists for these people, the outcome was simulated from a score for prostate cancer, women
  included. The score is no measure of the risk of dying of pneumonia.
- Children, adults and genotype donors are different people, on purpose. See `ATTRIBUTION.md`.

SHA-256 of `risk.onnx`: `{digest}`
""",
        encoding="utf-8",
    )
