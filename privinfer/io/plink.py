"""PLINK 1 binary files: .bed, with .bim and .fam of the same name beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from privinfer.errors import InputError
from privinfer.io.door import gone, need, read_text
from privinfer.io.sites import chromosome
from privinfer.io.variants import Places, Variant

_MAGIC: Final = b"\x6c\x1b\x01"  # the last byte: one SNP after the other
_MISSING: Final = -127


class Plink:
    """A set of three files."""

    build = None  # PLINK 1 has no place for it

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self._bed = file
        need("bed_reader", "bed-reader", "genomics")
        try:
            with file.open("rb") as opened:
                magic = opened.read(3)
            size = file.stat().st_size
        except FileNotFoundError:
            raise gone(file) from None
        except OSError as e:
            raise InputError(f"{file} cannot be read: {(e.strerror or 'unknown reason').lower()}") from None
        if magic != _MAGIC:
            raise InputError(f"{self.name} is no PLINK 1 .bed file", hint="plink --make-bed writes one")
        self.people = tuple(cells[1] for cells in self._table(".fam", 6))
        self._rows = self._table(".bim", 6)
        if size != 3 + len(self._rows) * -(-len(self.people) // 4):
            raise InputError(
                f"{self.name} has another size than its .bim and .fam say",
                hint="it is cut off, or the three files are of different sets",
            )
        if len(set(self.people)) != len(self.people):
            raise InputError(f"{self.name}: two people of the .fam have one name")

    def _table(self, suffix: str, cells: int) -> list[list[str]]:
        file = self._bed.with_suffix(suffix)
        rows = [line.split() for line in read_text(file).splitlines() if line.strip()]
        if not rows or any(len(row) != cells for row in rows):
            raise InputError(f"{file.name} is no {suffix} file", hint=f"{cells} columns in every line")
        return rows

    def variants(self, places: Places, rsids: frozenset[str]) -> Iterator[Variant]:
        """Records at these places, and of these rs numbers."""
        wanted, found = [], []
        for i, (chrom, rsid, _, position, first, second) in enumerate(self._rows):
            if not position.lstrip("-").isdigit():
                raise InputError(f"{self.name}: line {i + 1} of the .bim has no position")
            where = (chromosome(chrom) or "", int(position[:12]))
            if where in places or rsid in rsids:
                wanted.append(i)
                found.append((*where, rsid, (first.upper(), second.upper())))
        if not wanted:
            return
        bed_reader = need("bed_reader", "bed-reader", "genomics")
        try:
            with bed_reader.open_bed(
                self._bed, len(self.people), len(self._rows), skip_format_check=False, num_threads=1
            ) as bed:
                counts = bed.read(np.s_[:, wanted], dtype="int8").astype(np.int16)
        except Exception:  # a parser of foreign files raises what it likes
            raise InputError(f"{self.name} cannot be read") from None
        for k, (where_chrom, pos, rsid, alleles) in enumerate(found):
            first_copies = counts[:, k]
            gap = first_copies == _MISSING
            copies = np.where(gap, -1, [first_copies, 2 - first_copies]).astype(np.int8)
            if alleles[0] == "0":  # nobody of the set has another allele, and the .bim does not know it
                yield Variant(where_chrom, pos, rsid, alleles[1:], copies[1:], exhaustive=False)
            else:
                yield Variant(where_chrom, pos, rsid, alleles, copies)
