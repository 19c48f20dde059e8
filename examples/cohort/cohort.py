"""Draw the synthetic patients of the example from the files in `data/`.

The linkage is synthetic. No person appears in more than one source: the X-rays are of children in
Guangzhou, the bloods of adults in Wuhan, and the genotypes of 1000 Genomes participants, who have no
health records. A "patient" is three strangers joined by a simulated outcome:

1. draw a person, and standardise the polygenic score within the superpopulation: z;
2. draw the simulated outcome y ~ Bernoulli(sigmoid(ln 1.8 * z));
3. draw an X-ray of class y (1 = pneumonia) and a blood row with died = y.

Given y the three sources are independent, so that joining them helps is a property of this drawing and
no medical finding. Pools are disjoint between the splits in every source: pictures by content, people by
population (families stay together), bloods by row.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DATA = Path(__file__).parent / "data"
SEED = 20_200_825
SIZES: dict[Split, int] = {"train": 4000, "validation": 1000, "test": 200}
ODDS_RATIO = 1.8  # of the simulated outcome, per standard deviation of the score
# What the data owners declare about their inputs; `load` never leaves these intervals.
RANGES: dict[str, tuple[float, float]] = {"xray": (0.0, 1.0), "dna": (0.0, 2.0), "blood": (-4.0, 4.0)}
# One population of each superpopulation, in the order AFR, AMR, EAS, EUR, SAS; all others train.
HELD_OUT: dict[str, frozenset[str]] = {
    "validation": frozenset({"LWK", "CLM", "JPT", "GBR", "STU"}),
    "test": frozenset({"MSL", "MXL", "CDX", "TSI", "GIH"}),
}


@dataclass(frozen=True, eq=False)
class Pictures:
    """X-rays of one split.

    Attributes
    ----------
    images
        uint8 (n, 28, 28).
    labels
        (n,), 0 normal, 1 pneumonia.
    """

    images: NDArray[np.uint8]
    labels: Ints


@dataclass(frozen=True, eq=False)
class Genotypes:
    """Everyone in the genotype panel.

    Attributes
    ----------
    dosages
        int8 (people, 944): copies of the effect allele, 0, 1 or 2.
    site
        (944,) `chromosome:position:REF:ALT`, GRCh38.
    effect_allele, weight
        (944,) of the polygenic score PGS000586.
    population, superpopulation
        (people,) codes of the 1000 Genomes Project.
    expected_sum
        (people,) score as computed by others, to check ours.
    """

    dosages: NDArray[np.int8]
    site: NDArray[np.str_]
    effect_allele: NDArray[np.str_]
    weight: Floats
    population: NDArray[np.str_]
    superpopulation: NDArray[np.str_]
    expected_sum: Floats

    @property
    def z(self) -> Floats:
        """(people,) polygenic score, standardised within the superpopulation.

        Mean and deviation are those of everyone in it, whatever the split: they define the outcome.
        """
        z = self.dosages @ self.weight
        for group in np.unique(self.superpopulation):
            inside = self.superpopulation == group
            z[inside] = (z[inside] - z[inside].mean()) / z[inside].std()
        return z

    def pool(self, split: Split) -> Ints:
        """Return the indices of the people whose population belongs to `split`."""
        if split == "train":
            inside = ~np.isin(self.population, sorted(frozenset[str]().union(*HELD_OUT.values())))
        else:
            inside = np.isin(self.population, sorted(HELD_OUT[split]))
        return np.flatnonzero(inside)


@dataclass(frozen=True, eq=False)
class Bloods:
    """All rows of admission bloods.

    Attributes
    ----------
    row_id
        (rows,) identifiers.
    columns
        Names of the F tests.
    raw
        (rows, F) in the laboratory's units, NaN where missing.
    died
        (rows,) 0 discharged, 1 died.
    split
        (rows,) train, validation or test.
    """

    row_id: NDArray[np.str_]
    columns: tuple[str, ...]
    raw: Floats
    died: Ints
    split: NDArray[np.str_]

    def statistics(self) -> tuple[Floats, Floats]:
        """Return median and interquartile range, each (F,), of the training rows alone."""
        low, median, high = np.nanpercentile(self.raw[self.split == "train"], [25, 50, 75], axis=0)
        return median, high - low

    def standardise(self, raw: Floats) -> Floats:
        """Return (raw - median) / IQR, missing as 0 (the median), clipped to `RANGES["blood"]`."""
        median, spread = self.statistics()
        return np.clip(np.nan_to_num((raw - median) / spread, nan=0.0), *RANGES["blood"])


@dataclass(frozen=True, eq=False)
class Cohort:
    """Synthetic patients; row i of every array is patient i.

    Attributes
    ----------
    xray
        (n, 1, 28, 28) in [0, 1].
    dna
        (n, 944) copies of the effect allele, 0, 1 or 2.
    blood
        (n, F) robustly standardised tests in [-4, 4].
    y
        (n,) simulated outcome, 0 or 1.
    raw
        (n, F) the same tests in the laboratory's units, NaN where missing, to show to people.
    columns
        Names of the F tests.
    picture, person, blood_row
        (n,) where each part came from: index in the split's pictures, index in the panel, row identifier.
    population
        (n,) population code of the person whose genotype was drawn.
    """

    xray: Floats
    dna: Floats
    blood: Floats
    y: Ints
    raw: Floats
    columns: tuple[str, ...]
    picture: Ints
    person: Ints
    blood_row: NDArray[np.str_]
    population: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.y)

    def inputs(self) -> dict[str, Floats]:
        """Return the model's inputs by name."""
        return {"xray": self.xray, "dna": self.dna, "blood": self.blood}


@cache
def pictures(split: Split) -> Pictures:
    """Read the X-rays of one split."""
    with np.load(DATA / "xray.npz", allow_pickle=False) as z:
        return Pictures(z[f"{split}_images"], z[f"{split}_labels"].astype(np.int64))


@cache
def genotypes() -> Genotypes:
    """Read the genotype panel and the polygenic score."""
    with np.load(DATA / "dna.npz", allow_pickle=False) as z:
        arrays = {name: z[name] for name in z.files}
    # Four counts a byte along the people axis, lowest bits first, zero-padded.
    pairs = (arrays.pop("dosages")[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    people = len(arrays["population"])
    dosages = pairs.reshape(len(pairs), -1)[:, :people].T.astype(np.int8)
    return Genotypes(dosages=np.ascontiguousarray(dosages), **arrays)


@cache
def bloods() -> Bloods:
    """Read the admission bloods."""
    with (DATA / "blood.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = tuple(name for name in rows[0] if name not in {"row_id", "died", "split"})
    return Bloods(
        row_id=np.array([row["row_id"] for row in rows]),
        columns=columns,
        raw=np.array([[float(row[name] or "nan") for name in columns] for row in rows]),
        died=np.array([int(row["died"]) for row in rows]),
        split=np.array([row["split"] for row in rows]),
    )


def load(split: Split, seed: int = SEED, n: int | None = None) -> Cohort:
    """Draw synthetic patients of one split, with replacement from its pools.

    Parameters
    ----------
    split
        Whose pools to draw from.
    seed
        Of the drawing; the same seed gives the same patients. Splits do not share a stream.
    n
        How many patients, by default `SIZES[split]`.

    Returns
    -------
    Cohort
        The patients. Their linkage is synthetic, see the module's docstring.

    Raises
    ------
    ValueError
        If `split` is unknown or `n` is not positive.
    """
    if split not in SIZES:
        raise ValueError(f"unknown split {split!r}")
    n = SIZES[split] if n is None else n
    if n <= 0:
        raise ValueError("n must be positive")
    rng = np.random.default_rng([seed, list(SIZES).index(split)])
    photos, panel, lab = pictures(split), genotypes(), bloods()

    def pick(pool: Ints, size: int) -> Ints:
        # `random` is the one stream NumPy promises least to change; n < 2**32 leaves no bias that matters.
        return pool[(rng.random(size) * len(pool)).astype(np.int64)]

    person = pick(panel.pool(split), n)
    odds = ODDS_RATIO ** panel.z[person]
    y = (rng.random(n) < odds / (1 + odds)).astype(np.int64)
    picture, row = np.empty(n, np.int64), np.empty(n, np.int64)
    for outcome in (0, 1):
        members = np.flatnonzero(y == outcome)
        picture[members] = pick(np.flatnonzero(photos.labels == outcome), len(members))
        row[members] = pick(np.flatnonzero((lab.split == split) & (lab.died == outcome)), len(members))
    return Cohort(
        xray=photos.images[picture][:, None] / 255.0,
        dna=panel.dosages[person].astype(np.float64),
        blood=lab.standardise(lab.raw[row]),
        y=y,
        raw=lab.raw[row],
        columns=lab.columns,
        picture=picture,
        person=person,
        blood_row=lab.row_id[row],
        population=panel.population[person],
    )
