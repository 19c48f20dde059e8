"""VCF 4.x as text, plain or gzip: positions, alleles and GT.

Own reader, because htslib (and so cyvcf2) writes what it cannot read to standard error, words of the file
among it and past every error of ours, and offers Python no way to stop it. The tests hold this reader
against cyvcf2.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from privinfer.errors import InputError
from privinfer.io.door import gone
from privinfer.io.sites import BUILDS, LENGTHS, chromosome
from privinfer.io.variants import Places, Variant

MAX_LINE: Final = 64 << 20
_CONTIG = re.compile(r"##contig=<(?P<body>[^<>]*)>")
_REFERENCE = {"GRCh37": r"grch37|hg19|b37|hs37|human_g1k_v37", "GRCh38": r"grch38|hg38|hs38"}
_FIXED = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
_GT = re.compile(r"(?:\.|\d{1,3})(?:[/|](?:\.|\d{1,3})){0,3}")


class Vcf:
    """One file of one or many people."""

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self._file = file
        head: list[str] = []
        for line in self._lines():
            head.append(line)
            if not line.startswith("##"):
                break
        if not head or not head[0].startswith("##fileformat=VCFv4"):
            raise InputError(
                f"{self.name} is no VCF 4 file", hint="was it swapped with another input's file?"
            )
        columns = head[-1].split("\t")
        if columns[:9] != _FIXED or len(columns) < 10:
            raise InputError(f"{self.name} holds no genotypes", hint="its #CHROM line names no people")
        self.people = tuple(columns[9:])
        if len(set(self.people)) != len(self.people):
            raise InputError(f"{self.name}: two people have one name")
        self.build = self._build(head)

    def _build(self, head: list[str]) -> str | None:
        """By the lengths of contigs; else by what the reference is called."""
        said = set()
        for line in head:
            if match := _CONTIG.fullmatch(line):
                fields = dict(part.partition("=")[::2] for part in match["body"].split(","))
                name, length = chromosome(fields.get("ID", "")), fields.get("length", "")
                if name is None or not length.isdigit():
                    continue
                if name in LENGTHS["GRCh37"]:
                    said.add(next((b for b in BUILDS if LENGTHS[b][name] == int(length)), "another"))
        if not said:
            for line in head:
                if line.startswith("##reference=") or line.startswith("##assembly="):
                    said |= {
                        b for b, pattern in _REFERENCE.items() if re.search(pattern, line, re.IGNORECASE)
                    }
        if len(said) > 1:
            raise InputError(f"{self.name}: its header speaks of more than one build")
        return said.pop() if said else None

    def _lines(self) -> Iterator[str]:
        try:
            with self._file.open("rb") as opened:
                packed = opened.read(2) == b"\x1f\x8b"
            with gzip.open(self._file) if packed else self._file.open("rb") as stream:
                while raw := stream.readline(MAX_LINE + 1):
                    if len(raw) > MAX_LINE:
                        raise InputError(f"{self.name} has a line of more than {MAX_LINE >> 20} MiB")
                    if not raw.endswith(b"\n"):  # a text file that is whole ends with its line
                        raise InputError(f"{self.name} is cut off in its last line", hint="copy it again")
                    yield raw.decode("utf-8").rstrip("\r\n")
        except FileNotFoundError:
            raise gone(self._file) from None
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise InputError(f"{self.name} is truncated or damaged", hint="copy it again") from None
        except UnicodeDecodeError:
            raise InputError(
                f"{self.name} is no text", hint="bcftools view -Oz writes .vcf.gz from .bcf"
            ) from None
        except OSError as e:
            raise InputError(
                f"{self._file} cannot be read: {(e.strerror or 'unknown reason').lower()}"
            ) from None

    def variants(self, places: Places, rsids: frozenset[str]) -> Iterator[Variant]:
        """Records at these places, and of these rs numbers; InputError names the line that is no record."""
        for number, line in enumerate(self._lines(), 1):
            if line.startswith("#") or not line:
                continue
            fixed = line.split("\t", 9)
            if len(fixed) < 10 or not fixed[1].isascii() or not fixed[1].isdigit():
                raise InputError(
                    f"{self.name} line {number} is no record", hint="nine columns and the people's"
                )
            where = (chromosome(fixed[0]) or "", int(fixed[1][:12]))
            if where not in places and fixed[2] not in rsids:
                continue
            cells = fixed[9].split("\t")
            if len(cells) != len(self.people):
                raise InputError(f"{self.name} line {number} has another number of people than the header")
            alleles = (fixed[3].upper(), *(a for a in fixed[4].upper().split(",") if a != "."))
            copies = self._copies(cells, fixed[8], len(alleles), number)
            # a record without ALT shows one allele and leaves the other open
            yield Variant(*where, fixed[2], alleles, copies, exhaustive=len(alleles) > 1)

    def _copies(self, cells: list[str], form: str, alleles: int, number: int) -> np.ndarray:
        if form.split(":", 1)[0] != "GT":  # the format wants it first
            raise InputError(
                f"{self.name} line {number} has no GT", hint="genotypes are read, likelihoods are not"
            )
        counts: dict[str, list[int]] = {}  # there are few different calls
        for cell in cells:
            call = cell.split(":", 1)[0]
            if call not in counts:
                counts[call] = self._count(call, alleles, number)
        return np.array([counts[cell.split(":", 1)[0]] for cell in cells], np.int8).T

    def _count(self, call: str, alleles: int, number: int) -> list[int]:
        if not _GT.fullmatch(call):
            raise InputError(f"{self.name} line {number} has a genotype that is none")
        called = re.split(r"[/|]", call)
        if "." in called:  # a half call says too little
            return [-1] * alleles
        if any(int(a) >= alleles for a in called) or len(called) > 2:
            raise InputError(
                f"{self.name} line {number} has a genotype of alleles or copies that are not there"
            )
        return [sum(int(a) == k for a in called) for k in range(alleles)]
