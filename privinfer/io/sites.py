"""Sites of a genome: places, and the allele whose copies are counted there.

A record of a file answers for a site if it lies at its position and speaks of its alleles, in either order
(REF and ALT swapped change nothing: copies of a named allele are counted) or, where a door admits it, on the
other strand.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privinfer.errors import ConfigError, InputError
from privinfer.io.door import read_text
from privinfer.session import canonical

BUILDS: Final = ("GRCh37", "GRCh38")
# length of chromosome 1, which tells builds apart (GRC)
LENGTHS: Final = {
    "GRCh37": {
        "1": 249250621,
        "2": 243199373,
        "3": 198022430,
        "10": 135534747,
        "22": 51304566,
        "X": 155270560,
    },
    "GRCh38": {
        "1": 248956422,
        "2": 242193529,
        "3": 198295559,
        "10": 133797422,
        "22": 50818468,
        "X": 156040895,
    },
}
AUTOSOMES: Final = tuple(str(n) for n in range(1, 23))
CHROMOSOMES: Final = (*AUTOSOMES, "X", "Y", "MT")
_ALIASES: Final = {"23": "X", "24": "Y", "25": "X", "26": "MT", "M": "MT", "XY": "X"}
_ALLELE = re.compile(r"[ACGT]{1,1000}")
_RSID = re.compile(r"rs\d{1,12}")
_COMPLEMENT = str.maketrans("ACGT", "TGCA")
MAX_SITES: Final = 2_000_000
MAX_POSITION: Final = 250_000_000


def chromosome(text: str) -> str | None:
    """One name for each chromosome: 1..22, X, Y, MT; None where it is another thing."""
    name = text.removeprefix("chr").removeprefix("CHR").upper()
    name = _ALIASES.get(name, name)
    return name if name in CHROMOSOMES else None


def complement(allele: str) -> str:
    """The allele on the other strand, read in its direction."""
    return allele.translate(_COMPLEMENT)[::-1]


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a genome and the allele that is counted there.

    Attributes
    ----------
    chrom : str
        1..22, X, Y or MT.
    pos : int
        From 1, in the build of the door.
    effect : str
        The allele whose copies are counted, on the forward strand.
    other : str or None
        The other allele; None where it is not known.
    rsid : str
        ``rs`` number, or "".
    frequency : float or None
        Of the effect allele; a gap may be taken for its mean, twice that.
    """

    chrom: str
    pos: int
    effect: str
    other: str | None = None
    rsid: str = ""
    frequency: float | None = None

    def __post_init__(self) -> None:
        if self.chrom not in CHROMOSOMES or not 0 < self.pos <= MAX_POSITION:
            raise ConfigError(f"a site lies nowhere: chromosome {self.chrom[:10]!r} position {self.pos}")
        for allele in (self.effect, self.other):
            if allele is not None and not _ALLELE.fullmatch(allele):
                raise ConfigError(f"site {self.place} has an allele that is no word of A, C, G and T")
        if self.effect == self.other:
            raise ConfigError(f"site {self.place} has one allele twice")
        if self.rsid and not _RSID.fullmatch(self.rsid):
            raise ConfigError(f"site {self.place} has an rsid that is none")
        if self.frequency is not None and not 0 <= self.frequency <= 1:
            raise ConfigError(f"site {self.place} has a frequency outside of 0..1")

    @property
    def place(self) -> str:
        """``chrom:pos``."""
        return f"{self.chrom}:{self.pos}"

    @property
    def name(self) -> str:
        """What the tensor's entry is called."""
        return f"{self.rsid or self.place}_{self.effect}"

    @property
    def ambiguous(self) -> bool:
        """Whether the two strands look alike (A/T, C/G), so that alleles cannot tell them apart."""
        return self.other is not None and complement(self.effect) == self.other

    def plain(self) -> list[canonical.Value]:
        """In plain values."""
        return [self.chrom, self.pos, self.effect, self.other, self.rsid, self.frequency]

    def matched(self, alleles: Sequence[str], exhaustive: bool, flip: bool) -> tuple[str, bool] | None:
        """Find the effect allele in a record.

        Parameters
        ----------
        alleles : sequence of str
            Of the record.
        exhaustive : bool
            Whether these are all alleles of the record (VCF, PLINK), or those one person happens to have.
        flip : bool
            Whether the other strand is looked at too.

        Returns
        -------
        (str, bool) or None
            The effect allele as the record writes it, and whether it is on the other strand.
        """
        own = {self.effect} if self.other is None else {self.effect, self.other}
        given = set(alleles)
        # without the other allele nothing shows that a strand was turned over
        turned = {complement(a) for a in own} if flip and self.other is not None else None
        for wanted, effect, flipped in (
            (own, self.effect, False),
            (turned, complement(self.effect), True),
        ):
            if wanted is None:
                continue
            if (wanted <= given) if exhaustive else (given <= wanted or self.other is None):
                return effect, flipped
        return None


def sites_digest(sites: Sequence[Site]) -> str:
    """SHA-256 of the sites in order, hex."""
    return hashlib.sha256(canonical.dumps([s.plain() for s in sites])).hexdigest()


def read_sites(path: str | os.PathLike[str]) -> tuple[Site, ...]:
    """Read sites from a CSV with the columns chrom, pos, effect and optionally other, rsid, frequency.

    Raises
    ------
    ConfigError
        A column is missing, or a row is no site; the row is named.
    """
    file = Path(path)
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file)), strict=True))
    except (csv.Error, InputError):
        raise ConfigError(f"sites {file} cannot be read as CSV") from None
    needed = {"chrom", "pos", "effect"}
    if not rows or not needed <= set(rows[0]):
        raise ConfigError(f"sites {file} needs a header with {', '.join(sorted(needed))}")
    if len(rows) > MAX_SITES:
        raise ConfigError(f"sites {file} has more than {MAX_SITES} rows")
    found = []
    for i, row in enumerate(rows, 1):
        try:
            frequency = row.get("frequency")
            found.append(
                Site(
                    chromosome(row["chrom"]) or row["chrom"],
                    int(row["pos"]),
                    row["effect"],
                    row.get("other") or None,
                    row.get("rsid") or "",
                    float(frequency) if frequency else None,
                )
            )
        except (ValueError, TypeError):
            raise ConfigError(f"sites {file} row {i} is no site") from None
    return tuple(found)
