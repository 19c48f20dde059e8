"""Raw data as 23andMe exports them: rsid, chromosome, position and one or two letters, forward strand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from privinfer.errors import InputError
from privinfer.io.door import read_text
from privinfer.io.sites import chromosome
from privinfer.io.variants import Places, Variant

_BUILD = re.compile(r"build\s+(36|37|38)", re.IGNORECASE)
_NAMES = {"36": "NCBI36", "37": "GRCh37", "38": "GRCh38"}
_CALL = re.compile(r"[ACGT]{1,2}|[ID]{1,2}|-{1,2}")


class Text23:
    """One person's file."""

    people = ("",)

    def __init__(self, file: Path) -> None:
        self.name = file.name
        lines = read_text(file).splitlines()
        comments = [line for line in lines if line.startswith("#")]
        self._lines = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith("#")]
        said = {m[1] for line in comments if (m := _BUILD.search(line))}
        self.build = _NAMES[said.pop()] if len(said) == 1 else None
        if not self._lines:
            raise InputError(f"{self.name} holds no genotypes")

    def variants(self, places: Places, rsids: frozenset[str]) -> Iterator[Variant]:
        """Records at these places, and of these rs numbers; InputError names the first line that is none."""
        for number, line in self._lines:
            cells = line.split("\t")
            call = cells[3].strip() if len(cells) == 4 else ""
            if not _CALL.fullmatch(call) or not cells[2].isascii() or not cells[2].isdigit():
                raise InputError(
                    f"{self.name} line {number} is no genotype line",
                    hint="rsid, chromosome, position and genotype, separated by tabulators",
                )
            chrom, position = chromosome(cells[1]) or "", int(cells[2][:12])
            if (chrom, position) not in places and cells[0] not in rsids:
                continue
            # I and D do not say which letters were inserted or deleted: no call
            alleles = tuple(sorted(set(call) & set("ACGT")))
            counts = [[call.count(a)] for a in alleles] or [[-1]]
            yield Variant(
                chrom, position, cells[0], alleles or ("N",), np.array(counts, np.int8), exhaustive=False
            )
