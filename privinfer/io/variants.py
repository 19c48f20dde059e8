"""What the three genotype formats are read into: records at the places that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Places = frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One record of a file.

    Attributes
    ----------
    chrom, pos, rsid
        As of a site.
    alleles : tuple of str
        All of the record, or (not `exhaustive`) those seen.
    copies : ndarray of int8
        (alleles, people): copies of each allele; -1 in the whole column of a person without a call. Secret.
    exhaustive : bool
        Whether a record's alleles are all there are.
    """

    chrom: str
    pos: int
    rsid: str
    alleles: tuple[str, ...]
    copies: npt.NDArray[np.int8] = field(repr=False)
    exhaustive: bool = True


class Source(Protocol):
    """An opened file of genotypes."""

    @property
    def name(self) -> str:
        """What an error calls the file."""
        ...

    @property
    def build(self) -> str | None:
        """What the file says of its build; None where it says nothing."""
        ...

    @property
    def people(self) -> tuple[str, ...]:
        """Identifiers in the order of the rows; they are shown nowhere."""
        ...

    def variants(self, places: Places, rsids: frozenset[str]) -> Iterator[Variant]:
        """Records at these places, and records of these rs numbers wherever they are."""
        ...
