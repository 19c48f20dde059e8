"""Cut the small files shipped in `data/` from the original sources.

Only needed to rebuild those files; `cohort.py` and `train.py` work from what is shipped. The sources are
three folders under `--source`, and `ATTRIBUTION.md` says where each of them comes from:

- `xray_pneumonia/`: `pneumonia28_train_val.npz`, `pneumonia28_test.npz`
- `dna_pgs_prostate/`: the genotype VCF, the scoring file, `samples_expected_scores.csv`
- `blood_covid_wuhan/`: `admission_bloods.csv`

Nothing here links people. The same sources and the same zlib give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEED = 20_200_825
TRAIN_PICTURES_PER_CLASS = 1200
VALIDATION_BLOOD_SHARE = 0.2
# Laboratory values only: age and sex would not come from an analyser.
BLOOD_COLUMNS = (
    "ldh",
    "hs_crp",
    "lymphocyte_pct",
    "lymphocyte_count",
    "neutrophil_count",
    "monocyte_pct",
    "eosinophil_pct",
    "platelet_count",
    "hemoglobin",
    "rdw_cv",
    "albumin",
    "globulin",
    "total_bilirubin",
    "ast",
    "alt",
    "urea",
    "creatinine",
    "glucose",
    "sodium",
    "potassium",
    "calcium",
    "bicarbonate",
    "prothrombin_time",
    "d_dimer",
)


def shuffled(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a permutation that depends on `rng.random` alone, the stream NumPy keeps stable."""
    return np.argsort(rng.random(n), kind="stable").astype(np.int64)


def write_npz(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Write a compressed archive; NumPy stamps its members with a constant date, so bytes repeat."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def prepare_xray(source: Path, target: Path) -> None:
    """Drop repeated pictures within and across splits, and take a balanced part of the training set.

    Parameters
    ----------
    source
        Folder with the two archives of uint8 (n, 28, 28) pictures.
    target
        Archive to write: `<split>_images` and `<split>_labels` for train, validation and test.
    """
    with np.load(source / "pneumonia28_train_val.npz", allow_pickle=False) as z:
        splits = {
            "train": (z["train_images"], z["train_labels"].reshape(-1)),
            "validation": (z["val_images"], z["val_labels"].reshape(-1)),
        }
    with np.load(source / "pneumonia28_test.npz", allow_pickle=False) as z:
        splits["test"] = (z["images"], z["labels"].reshape(-1))

    seen: set[bytes] = set()
    arrays: dict[str, NDArray[np.generic]] = {}
    # Test first, training last: a repeat is always dropped from the split that can best spare it.
    for split in ("test", "validation", "train"):
        images, labels = splits[split]
        keep = []
        for i, picture in enumerate(images):
            digest = hashlib.sha256(picture.tobytes()).digest()
            if digest not in seen:
                seen.add(digest)
                keep.append(i)
        chosen = np.array(keep)
        if split == "train":
            order = shuffled(len(chosen), np.random.default_rng([SEED, 1]))
            chosen = np.sort(
                np.concatenate(
                    [[i for i in chosen[order] if labels[i] == y][:TRAIN_PICTURES_PER_CLASS] for y in (0, 1)]
                )
            )
        arrays[f"{split}_images"] = images[chosen].astype(np.uint8)
        arrays[f"{split}_labels"] = labels[chosen].astype(np.uint8)
    write_npz(target, arrays)


def autosomal_weights(path: Path) -> dict[tuple[str, str], list[tuple[str, str, float]]]:
    """Read a PGS Catalog scoring file: (chromosome, position) to (effect allele, other allele, weight)."""
    weights: dict[tuple[str, str], list[tuple[str, str, float]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = csv.DictReader((line for line in lines if not line.startswith("#")), delimiter="\t")
        for row in rows:
            if row["hm_chr"].isdigit():
                entry = (row["effect_allele"], row["other_allele"], float(row["effect_weight"]))
                weights.setdefault((row["hm_chr"], row["hm_pos"]), []).append(entry)
    return weights


def prepare_dna(source: Path, target: Path) -> None:
    """Count effect alleles at the autosomal sites whose alleles match the scoring file.

    Parameters
    ----------
    source
        Folder with the VCF (phased GT, biallelic), the scoring file and the expected sums.
    target
        Archive to write. `dosages` packs four 2-bit counts a byte along the people axis, lowest bits
        first, site by site; the other arrays describe its rows and columns.

    Raises
    ------
    ValueError
        If the sites used are not 563 + 381, or a person's weighted sum differs from the published one.
    """
    weights = autosomal_weights(source / "PGS000586_hmPOS_GRCh38.txt.gz")
    samples: list[str] = []
    sites: list[tuple[str, str, float]] = []
    rows: list[NDArray[np.uint8]] = []
    orientation = {"ALT": 0, "REF": 0}
    with gzip.open(source / "kg_highcov_pgs000586_sites_GRCh38.vcf.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("##"):
                continue
            fields = line.rstrip("\n").split("\t")
            if line.startswith("#CHROM"):
                samples = fields[9:]
                continue
            chrom, pos, _, ref, alt = fields[:5]
            for effect, other, weight in weights.get((chrom.removeprefix("chr"), pos), []):
                if {effect, other} != {ref, alt}:
                    continue
                calls = "".join(call[0] + call[2] for call in fields[9:]).encode()
                alts = (np.frombuffer(calls, np.uint8) - ord("0")).reshape(-1, 2).sum(1)
                orientation["ALT" if effect == alt else "REF"] += 1
                rows.append((alts if effect == alt else 2 - alts).astype(np.uint8))
                sites.append((f"{chrom}:{pos}:{ref}:{alt}", effect, weight))
    if orientation != {"ALT": 563, "REF": 381}:
        raise ValueError(f"unexpected sites: {orientation}")

    with (source / "samples_expected_scores.csv").open(newline="", encoding="utf-8") as file:
        people = {row["sample_id"]: row for row in csv.DictReader(file)}
    dosages = np.stack(rows)  # (sites, people)
    expected = np.array([float(people[s]["pgs000586_autosomal_sum"]) for s in samples])
    error = float(np.abs(np.array([s[2] for s in sites]) @ dosages - expected).max())
    if error > 1e-6 or int(dosages.max()) > 2:
        raise ValueError(f"weighted sums differ from the published ones by {error}")

    padded = np.pad(dosages, ((0, 0), (0, -len(samples) % 4)))
    quads = padded.reshape(len(sites), -1, 4)
    packed = (quads << np.array([0, 2, 4, 6], np.uint8)).sum(-1).astype(np.uint8)
    # Sample identifiers stay behind: a population is all the recipe asks of a person.
    write_npz(
        target,
        {
            "dosages": packed,
            "site": np.array([s[0] for s in sites]),
            "effect_allele": np.array([s[1] for s in sites]),
            "weight": np.array([s[2] for s in sites]),
            "population": np.array([people[s]["population"] for s in samples]),
            "superpopulation": np.array([people[s]["superpopulation"] for s in samples]),
            "expected_sum": expected,
        },
    )


def prepare_blood(source: Path, target: Path) -> None:
    """Keep the chosen columns as they stand, and cut validation rows out of the training rows.

    Parameters
    ----------
    source
        Folder with `admission_bloods.csv`.
    target
        CSV to write: row_id, `BLOOD_COLUMNS`, died, split (train, validation, test).
    """
    with (source / "admission_bloods.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng([SEED, 2])
    for died in ("0", "1"):
        group = [row for row in rows if row["split"] == "train" and row["died"] == died]
        for i in shuffled(len(group), rng)[: round(VALIDATION_BLOOD_SHARE * len(group))]:
            group[i]["split"] = "validation"
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, ["row_id", *BLOOD_COLUMNS, "died", "split"], extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Rebuild every file of `data/`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the three source folders")
    parser.add_argument("--target", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    prepare_xray(options.source / "xray_pneumonia", options.target / "xray.npz")
    prepare_dna(options.source / "dna_pgs_prostate", options.target / "dna.npz")
    prepare_blood(options.source / "blood_covid_wuhan", options.target / "blood.csv")
    for path in sorted(options.target.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name:10} {path.stat().st_size:9,} bytes  sha256 {digest}")


if __name__ == "__main__":
    main()
