"""Scoring files of the PGS Catalog: sites for whoever has genotypes, a linear model for the score's owner.

Weights are taken as they are scored: what `weight_type` calls them (log odds, betas, nothing) changes no
number.
Source: PGS Catalog scoring file format 2.0, https://www.pgscatalog.org/downloads/#dl_ftp_scoring.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from privinfer.errors import ConfigError, InputError
from privinfer.graph.ir import Architecture, Input, Linear, Model, Node, Output
from privinfer.graph.ranges import declare
from privinfer.io.door import read_text
from privinfer.io.genotypes import Genotypes
from privinfer.io.sites import BUILDS, MAX_SITES, Site, chromosome

# columns that make of a weight something else than "times copies of the allele"
_OTHER_RULES: Final = ("is_haplotype", "is_diplotype", "is_interaction", "is_dominant", "is_recessive")
_DOSAGE_WEIGHTS: Final = ("dosage_0_weight", "dosage_1_weight", "dosage_2_weight")
_NOTHING: Final = ("", "NA", "NR", "False", "FALSE", "false", "0")


@dataclass(frozen=True, slots=True)
class Score:
    """A polygenic score.

    Attributes
    ----------
    identifier : str
        ``PGS000001``.
    build : str
        Of the positions.
    sites : tuple of Site
        Effect and other alleles by position.
    weights : tuple of float
        One a site; the score owner's, not shown.
    """

    identifier: str
    build: str
    sites: tuple[Site, ...]
    weights: tuple[float, ...] = field(repr=False)

    def only(self, chromosomes: Iterable[str]) -> Score:
        """The part of the score that lies on these chromosomes."""
        wanted = {chromosome(str(c)) for c in chromosomes}
        kept = [(s, w) for s, w in zip(self.sites, self.weights, strict=True) if s.chrom in wanted]
        if not kept:
            raise ConfigError(f"score {self.identifier} has no site on these chromosomes")
        return dataclasses.replace(self, sites=tuple(s for s, _ in kept), weights=tuple(w for _, w in kept))

    def door(self, **settings: Any) -> Genotypes:
        """A door for genotypes at the score's sites; settings as of :class:`Genotypes`."""
        return Genotypes(self.sites, self.build, **settings)

    def model(self, source: str = "dna", output: str = "score") -> Model:
        """The score as a model: input `source` (sites,) in 0..2, output (1,) the weighted sum.

        Raises
        ------
        PrecisionError
            The sum may not fit the public number of bits.
        """
        count = len(self.sites)
        architecture = Architecture(
            (Input(source, (count,), 0.0, 2.0),),
            (Node("sum", Linear(count, 1), (source,)),),
            (Output(output, "sum"),),
        )
        return declare(Model(architecture, {"sum": {"weight": [[w] for w in self.weights], "bias": [0.0]}}))


def read_score(path: str | os.PathLike[str], build: str, *, unmapped: str = "refuse") -> Score:
    """Read a scoring file.

    Parameters
    ----------
    path : path
        ``.txt`` or ``.txt.gz``; harmonised (``hmPOS``) or not.
    build : str
        Build the positions have to be of: ``GRCh37`` or ``GRCh38``.
    unmapped : str
        Rows without a position in that build: ``refuse`` or ``drop``.

    Raises
    ------
    InputError
        It is no scoring file, is cut off, or scores otherwise than by copies of an allele; the row is named.
    ConfigError
        It has no positions of `build`.
    """
    if build not in BUILDS or unmapped not in ("refuse", "drop"):
        raise ConfigError(f"build is none of {', '.join(BUILDS)}, or unmapped neither refuse nor drop")
    name = Path(path).name
    lines = read_text(path).splitlines()
    said = dict(
        line.strip().lstrip("#").partition("=")[::2] for line in lines if line.startswith("#") and "=" in line
    )
    if "pgs_id" not in said or not said.get("format_version", "").startswith("2"):
        raise InputError(
            f"{name} is no PGS Catalog scoring file of format 2", hint="download it from the Catalog"
        )
    harmonised = "HmPOS_build" in said
    given = said["HmPOS_build"] if harmonised else said.get("genome_build", "NR")
    if {"hg19": "GRCh37", "hg38": "GRCh38"}.get(given, given) != build:
        raise ConfigError(
            f"{name} has positions of {given if given in BUILDS else 'an unknown build'}, not of {build}",
            hint=f"the Catalog has {said['pgs_id'][:20]}_hmPOS_{build}.txt.gz",
        )
    rows = list(csv.DictReader((x for x in lines if not x.startswith("#")), delimiter="\t"))
    count = said.get("variants_number", "")
    if not count.isdigit() or int(count) != len(rows) or not 0 < len(rows) <= MAX_SITES:
        raise InputError(
            f"{name} has {len(rows)} rows, and its header says {count[:10]}", hint="it is cut off"
        )
    sites, weights = [], []
    for i, row in enumerate(rows, 1):
        one = _row(row, harmonised, f"{name} row {i}")
        if one is not None:
            sites.append(one[0])
            weights.append(one[1])
        elif unmapped == "refuse":
            raise InputError(
                f"{name} row {i} has no position in {build}", hint='unmapped = "drop" leaves it out'
            )
    return Score(said["pgs_id"], build, tuple(sites), tuple(weights))


def _row(row: Mapping[str, Any], harmonised: bool, where: str) -> tuple[Site, float] | None:
    """Site and weight; None where the row has no position."""
    if None in row or None in row.values():
        raise InputError(f"{where} has another number of columns than the header")
    for column in _OTHER_RULES:
        if row.get(column, "") not in _NOTHING:
            raise InputError(
                f"{where} scores by {column}", hint="only weights times copies of an allele are read"
            )
    if any(row.get(c) for c in _DOSAGE_WEIGHTS):
        raise InputError(
            f"{where} has a weight a dosage", hint="only weights times copies of an allele are read"
        )
    chrom, position = (
        row.get(k, "") for k in (("hm_chr", "hm_pos") if harmonised else ("chr_name", "chr_position"))
    )
    effect = row.get("effect_allele", "").upper()
    other = (row.get("other_allele") or "").upper()
    try:
        weight = float(row.get("effect_weight", ""))
        if not math.isfinite(weight) or len(row["effect_weight"]) > 40:
            raise ValueError
    except ValueError:
        raise InputError(f"{where} has a weight that is no number") from None
    named = chromosome(chrom)
    if named is None or not position.isdigit():
        return None
    rsid = row.get("hm_rsID") or row.get("rsID") or ""
    try:
        return Site(
            named, int(position), effect, other or None, rsid if rsid.startswith("rs") else ""
        ), weight
    except ConfigError as e:
        raise InputError(f"{where}: {e.message}") from None
