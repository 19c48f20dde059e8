"""CSV and Parquet tables with a schema: columns by name, each with a unit, a range and a policy for gaps.

A unit may stand in the header, ``creatinine [mg/dL]``, or in Parquet in a column's metadata (``unit``); then
it is converted to the declared one or refused. A column without is taken to be in the declared unit, and its
range is what guards against another.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from privinfer.errors import ConfigError, InputError
from privinfer.io.door import Record, gone, need, read_text
from privinfer.io.quantities import Quantity, columns
from privinfer.session import canonical

MAX_COLUMNS: Final = 10_000
_HEADER = re.compile(r"(?P<name>[^\[\]]*[^\[\]\s])\s*\[(?P<unit>.+)\]")


@dataclass(frozen=True, slots=True)
class Table:
    """Door for a table with one row a person.

    Attributes
    ----------
    quantities : tuple of Quantity
        The columns that are wanted; others are not looked at.
    identifier : str
        Column that names the rows; "" where rows are not picked by name.
    gaps : tuple of str
        What stands in a cell that holds nothing.
    separator : str
        Of a CSV file.
    """

    kind: ClassVar[str] = "table"

    quantities: tuple[Quantity, ...]
    identifier: str = ""
    gaps: tuple[str, ...] = ("",)
    separator: str = ","

    def __post_init__(self) -> None:
        columns(self.quantities)
        if self.separator not in (",", ";", "\t"):
            raise ConfigError("separator is none of comma, semicolon and tabulator")

    def declaration(self) -> dict[str, canonical.Value]:
        """What the door does, in plain values."""
        return {
            "door": self.kind,
            "version": 1,
            "identifier": self.identifier,
            "gaps": list(self.gaps),
            "separator": self.separator,
            "quantities": [q.declaration() for q in self.quantities],
        }

    def read(self, path: str | os.PathLike[str], row: str | None = None) -> Record:
        """Read all rows, or the one whose identifier is `row`.

        Raises
        ------
        InputError
            A column is missing or doubled, or a cell does not fit; row and column are named, no value is.
        ConfigError
            pyarrow is missing for a Parquet file.
        """
        file = Path(path)
        if row is not None and not self.identifier:
            raise InputError("rows of this table have no names", hint="set identifier in the door file")
        header, cells = self._parquet(file) if file.suffix == ".parquet" else self._csv(file)
        heads = [self._head(h) for h in header]
        places = [self._find(heads, q.name, file.name) for q in self.quantities]
        given = [heads[place][1] for place in places]
        if row is not None:
            cells = self._pick(cells, self._find(heads, self.identifier, file.name), row, file.name)
        if not cells:
            raise InputError(f"{file.name} has no rows")
        notes: dict[str, int] = {}
        values = np.empty((len(cells), len(places)))
        for i, line in enumerate(cells):
            where = f"{file.name} row {i + 1}" if row is None else file.name
            for j, (q, place, unit) in enumerate(zip(self.quantities, places, given, strict=True)):
                text = line[place]
                values[i, j] = q.take(
                    None if text is None or text.strip() in self.gaps else text.strip(), unit, where, notes
                )
        return Record(values, *columns(self.quantities), notes)

    def _head(self, text: str) -> tuple[str, str | None]:
        """Name and unit of a column; a bracket that belongs to a wanted name stays in it."""
        if text in {q.name for q in self.quantities} or (match := _HEADER.fullmatch(text)) is None:
            return text, None
        return match["name"], match["unit"]

    @staticmethod
    def _find(heads: Sequence[tuple[str, str | None]], name: str, file: str) -> int:
        places = [i for i, (head, _) in enumerate(heads) if head == name]
        if len(places) != 1:
            count = "no column" if not places else f"{len(places)} columns"
            raise InputError(
                f"{file} has {count} {name!r}", hint="compare its header with the door file; case counts"
            )
        return places[0]

    @staticmethod
    def _pick(
        cells: Sequence[Sequence[str | None]], place: int, row: str, file: str
    ) -> list[Sequence[str | None]]:
        found = [line for line in cells if line[place] == row]
        if len(found) != 1:
            raise InputError(
                f"{file} has {len(found)} rows of the name after the #", hint="there has to be exactly one"
            )
        return found

    def _csv(self, file: Path) -> tuple[list[str], list[Sequence[str | None]]]:
        text = read_text(file)
        try:
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, strict=True))
        except csv.Error:
            raise InputError(f"{file.name} is no table", hint="quotes and separators do not fit") from None
        lines = [line for line in lines if line]
        if not lines or len(lines[0]) > MAX_COLUMNS:
            raise InputError(f"{file.name} is empty or has more than {MAX_COLUMNS} columns")
        for i, line in enumerate(lines[1:], 1):
            if len(line) != len(lines[0]):
                raise InputError(
                    f"{file.name} row {i} has {len(line)} cells, and the header {len(lines[0])}",
                    hint=f"is it separated by {self.separator!r}, and is it whole?",
                )
        return [head.strip() for head in lines[0]], list(lines[1:])

    @staticmethod
    def _parquet(file: Path) -> tuple[list[str], list[Sequence[str | None]]]:
        parquet = need("pyarrow.parquet", "pyarrow", "tables")
        if not file.is_file():
            raise gone(file)
        try:
            table = parquet.read_table(file, memory_map=True)
            found = [
                [None if v is None else _text(v) for v in column.to_pylist()] for column in table.columns
            ]
            heads = []
            for one in table.schema:
                unit = (one.metadata or {}).get(b"unit")
                heads.append(one.name if unit is None else f"{one.name} [{unit.decode()}]")
        except InputError:
            raise
        except Exception:  # the library raises what it likes
            raise InputError(f"{file.name} is no Parquet file, or is cut off") from None
        return heads, [list(line) for line in zip(*found, strict=True)]


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError("a column of the table holds neither numbers nor text")
    return str(value)
