"""Genotypes to dosages: copies of a named allele at named sites, from VCF, PLINK or 23andMe files.

What may not go wrong in silence: a file of another build (its header says so, or rs numbers lie elsewhere),
another allele at the place, a strand that cannot be told (A/T and C/G sites), a site that the file does not
have, a gap.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from privinfer.errors import ConfigError, InputError
from privinfer.io.door import Array, Record
from privinfer.io.plink import Plink
from privinfer.io.sites import BUILDS, MAX_SITES, Site, sites_digest
from privinfer.io.text23 import Text23
from privinfer.io.variants import Source, Variant
from privinfer.io.vcf import Vcf
from privinfer.session import canonical

_CHOICES: Final = {
    "build": BUILDS,
    "strand": ("forward", "either"),
    "ambiguous": ("refuse", "forward", "gap"),
    "missing": ("refuse", "zero", "mean"),
    "absent": ("refuse", "zero", "mean"),
}


@dataclass(frozen=True, slots=True)
class Genotypes:
    """Door for genotypes.

    Attributes
    ----------
    sites : tuple of Site
        One entry of the tensor each, in this order.
    build : str
        ``GRCh37`` or ``GRCh38``: of the sites' positions, and what files have to be of.
    file_build : str
        What a file is that does not say (PLINK never does); "" refuses such files.
    strand : str
        ``forward``: alleles have to be the site's; ``either``: also those of the other strand.
    ambiguous : str
        A/T and C/G sites: ``refuse`` the door, trust that files are on the ``forward`` strand, or treat them
        as a ``gap``, like absent ones.
    missing, absent : str
        A person without a call, and a site without a record in the file (or only one of other alleles):
        ``refuse``, ``zero`` copies, or the ``mean``, twice the site's frequency.
    """

    kind: ClassVar[str] = "genotypes"

    sites: tuple[Site, ...]
    build: str
    file_build: str = ""
    strand: str = "forward"
    ambiguous: str = "refuse"
    missing: str = "refuse"
    absent: str = "refuse"

    def __post_init__(self) -> None:
        for key, known in _CHOICES.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"{key} of a genotypes door is none of {', '.join(known)}")
        if self.file_build not in ("", self.build):
            raise ConfigError(
                "file_build of a genotypes door is not its build", hint="lift the sites over first"
            )
        if not 0 < len(self.sites) <= MAX_SITES:
            raise ConfigError(f"a genotypes door needs 1 to {MAX_SITES} sites")
        keys = {(s.chrom, s.pos, s.effect, s.other) for s in self.sites}
        if len(keys) != len(self.sites):
            raise ConfigError("a site stands twice in a genotypes door")
        unclear = [s for s in self.sites if s.ambiguous]
        if unclear and self.ambiguous == "refuse":
            raise ConfigError(
                f"{len(unclear)} sites are A/T or C/G, {unclear[0].place} first: their strand cannot be told",
                hint='set ambiguous = "forward" where files are on the forward strand, or "gap"',
            )
        if "mean" in (self.missing, self.absent) and any(s.frequency is None for s in self.sites):
            raise ConfigError("a gap is taken for the mean, and a site has no frequency")

    def declaration(self) -> dict[str, canonical.Value]:
        """What the door does, in plain values."""
        return {
            "door": self.kind,
            "version": 1,
            "sites": sites_digest(self.sites),
            "count": len(self.sites),
            "build": self.build,
            "file_build": self.file_build,
            "strand": self.strand,
            "ambiguous": self.ambiguous,
            "missing": self.missing,
            "absent": self.absent,
            "counted": "copies of the effect allele",
            "range": [0.0, 2.0],
        }

    def read(self, path: str | os.PathLike[str], row: str | None = None) -> Record:
        """Read dosages of all people of a file, or of the one whose identifier is `row`.

        Parameters
        ----------
        path : path
            ``.vcf``, ``.vcf.gz``, ``.bed`` (with ``.bim`` and ``.fam`` beside it) or ``.txt`` (23andMe).
        row : str, optional
            Identifier of a person.

        Returns
        -------
        Record
            (people, sites), copies of the effect allele in 0..2; on X a man has 0 or 1 where the file is
            haploid there.

        Raises
        ------
        InputError
            The file is damaged, of another build, or has no answer for a site; the message names the site.
        """
        source = open_source(Path(path))
        self._check_build(source)
        person = None
        if row is not None:
            if row not in source.people:
                raise InputError(f"{source.name} has nobody of the name after the #", hint="case counts")
            person = source.people.index(row)
        records = self._collect(source)
        notes: dict[str, int] = {}
        people = 1 if person is not None else len(source.people)
        values = np.empty((people, len(self.sites)))
        for j, site in enumerate(self.sites):
            values[:, j] = self._site(site, records[site.chrom, site.pos], source.name, person, notes)
        return Record(values, tuple(s.name for s in self.sites), ("1",) * len(self.sites), 0.0, 2.0, notes)

    def _check_build(self, source: Source) -> None:
        build = source.build or self.file_build
        if not build:
            raise InputError(
                f"{source.name} does not say its build",
                hint=f'if it is of {self.build}, set file_build = "{self.build}" in the door file',
            )
        if build != self.build:
            other = build if build in BUILDS else "another build"
            raise InputError(
                f"{source.name} is of {other}, and the sites are of {self.build}",
                hint="use the sites or score file of that build, or lift the file over",
            )

    def _collect(self, source: Source) -> dict[tuple[str, int], list[Variant]]:
        """Records by place; rs numbers that lie elsewhere give another build away."""
        rsids = {s.rsid: (s.chrom, s.pos) for s in self.sites if s.rsid}
        found: dict[tuple[str, int], list[Variant]] = defaultdict(list)
        places = frozenset((s.chrom, s.pos) for s in self.sites)
        for variant in source.variants(places, frozenset(rsids)):
            where = (variant.chrom, variant.pos)
            if where != rsids.get(variant.rsid, where):
                raise InputError(
                    f"{source.name} has {variant.rsid} at another place than {self.build} has it",
                    hint="the file is of another build than the sites",
                )
            found[where].append(variant)
        return found

    def _site(
        self, site: Site, records: list[Variant], name: str, person: int | None, notes: dict[str, int]
    ) -> Array:
        if site.ambiguous and self.ambiguous == "gap":
            return np.array([self._fill(site, "absent", "is A/T or C/G", name)])
        matches: list[tuple[Variant, str | None, bool]] = []
        for record in records:
            # the other strand of an ambiguous site is the site itself
            flip = self.strand == "either" and not site.ambiguous
            called = (record.copies >= 0).all()
            if not record.exhaustive and not called:
                matches.append((record, None, False))
            elif (match := site.matched(record.alleles, record.exhaustive, flip)) is not None:
                matches.append((record, *match))
        if len(matches) > 1:
            raise InputError(
                f"{name} has {site.place} twice with the site's alleles", hint="keep one of them"
            )
        if not matches:
            why = "other alleles than the site's" if records else "no record"
            notes[why] = notes.get(why, 0) + 1
            hint = (
                'the effect allele may be named on the other strand: strand = "either"' if records else None
            )
            return np.array([self._fill(site, "absent", f"has {why}", name, hint)])
        record, allele, flipped = matches[0]
        if flipped:
            notes["turned over"] = notes.get("turned over", 0) + 1
        if allele is None:
            copies = np.full(record.copies.shape[1], -1, np.int8)
        elif allele in record.alleles:
            copies = record.copies[record.alleles.index(allele)]
        else:  # letters of one person, and the effect allele is not among them
            copies = np.zeros(record.copies.shape[1], np.int8)
        chosen = copies if person is None else copies[person : person + 1]
        dosage = chosen.astype(np.float64)
        gaps = chosen < 0
        if gaps.any():
            dosage[gaps] = self._fill(site, "missing", "has no call", name)
            notes["missing"] = notes.get("missing", 0) + int(gaps.sum())
        return dosage

    def _fill(self, site: Site, policy: str, why: str, name: str, hint: str | None = None) -> float:
        how = getattr(self, policy)
        if how == "refuse":
            raise InputError(
                f"{name}: site {site.name} at {site.place} {why}",
                hint=hint or f'say what it is taken for with {policy} = "zero" or "mean"',
            )
        return 0.0 if how == "zero" or site.frequency is None else 2.0 * site.frequency


def open_source(file: Path) -> Source:
    """Open a genotype file by its suffix; InputError where it has another."""
    name = file.name.lower()
    if name.endswith((".vcf", ".vcf.gz")):
        return Vcf(file)
    if name.endswith(".bed"):
        return Plink(file)
    if name.endswith((".txt", ".txt.gz")):
        return Text23(file)
    raise InputError(
        f"{file.name} is no genotype file", hint=".vcf, .vcf.gz, .bed (PLINK) or .txt (23andMe) are read"
    )
