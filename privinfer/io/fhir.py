"""FHIR R4 bundles to laboratory values: LOINC codes pick, UCUM units convert or refuse.

One bundle is one person. Of several results of one quantity the latest counts (on a tie the one that stands
later in the bundle). Nothing that could be misread is taken: a result with a comparator ("< 5"), with a unit
that is no UCUM code, of another person, or without a time.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from privinfer.errors import ConfigError, InputError
from privinfer.io.door import Record, read_text
from privinfer.io.quantities import Quantity, columns
from privinfer.session import canonical

LOINC: Final = "http://loinc.org"
UCUM: Final = "http://unitsofmeasure.org"
STATUS: Final = ("final", "amended", "corrected")
_CODE = re.compile(r"\d{1,7}-\d")
_SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True, slots=True)
class Lab:
    """A quantity and the LOINC codes it stands under."""

    quantity: Quantity
    loinc: tuple[str, ...]

    def __post_init__(self) -> None:
        for code in self.loinc:
            if not _CODE.fullmatch(code) or not _check_digit(code):
                raise ConfigError(
                    f"quantity {self.quantity.name!r}: {code[:20]!r} is no LOINC code",
                    hint="its last digit is a check digit",
                )
        if not self.loinc:
            raise ConfigError(f"quantity {self.quantity.name!r} has no LOINC code")


@dataclass(frozen=True, slots=True)
class _Found:
    at: dt.datetime
    text: str | None
    unit: str | None
    flaw: InputError | None


@dataclass(frozen=True, slots=True)
class Fhir:
    """Door for laboratory results.

    Attributes
    ----------
    labs : tuple of Lab
        One column each.
    category : str
        Observations of this category only; "" for all.
    """

    kind: ClassVar[str] = "fhir"

    labs: tuple[Lab, ...]
    category: str = "laboratory"

    def __post_init__(self) -> None:
        columns(tuple(lab.quantity for lab in self.labs))
        codes = [code for lab in self.labs for code in lab.loinc]
        if len(set(codes)) != len(codes):
            raise ConfigError("a LOINC code stands under two quantities")

    def declaration(self) -> dict[str, canonical.Value]:
        """What the door does, in plain values."""
        return {
            "door": self.kind,
            "version": 1,
            "fhir": "R4",
            "category": self.category,
            "status": list(STATUS),
            "pick": "latest",
            "quantities": [lab.quantity.declaration() | {"loinc": list(lab.loinc)} for lab in self.labs],
        }

    def read(self, path: str | os.PathLike[str], row: str | None = None) -> Record:
        """Read a bundle (one row), or a folder of bundles in the order of their names.

        Raises
        ------
        InputError
            No bundle, or a result that does not fit; the message names the quantity and no value.
        """
        if row is not None:
            raise InputError("a FHIR bundle holds one person", hint="leave out what follows the #")
        folder = Path(path)
        files = [folder]
        if folder.is_dir():
            files = sorted(f for f in folder.iterdir() if f.name.endswith(_SUFFIXES))
            if not files:
                raise InputError(f"{folder.name} holds no bundle", hint="bundles end in .json or .json.gz")
        notes: dict[str, int] = {}
        rows = [self._row(file, notes) for file in files]
        names, shown, low, high = columns(tuple(lab.quantity for lab in self.labs))
        return Record(np.array(rows, np.float64), names, shown, low, high, notes)

    def _row(self, file: Path, notes: dict[str, int]) -> list[float]:
        found = self._latest(file)
        row = []
        for lab in self.labs:
            one = found.get(lab.quantity.name)
            if one is not None and one.flaw is not None:
                raise one.flaw
            text, unit = (None, None) if one is None else (one.text, one.unit)
            row.append(lab.quantity.take(text, unit, file.name, notes))
        return row

    def _latest(self, file: Path) -> dict[str, _Found]:
        wanted = {code: lab.quantity.name for lab in self.labs for code in lab.loinc}
        latest: dict[str, _Found] = {}
        for code, observation in observations(file, self.category):
            name = wanted.get(code)
            if name is None:
                continue
            one = _result(observation, name, file.name)
            if one is not None and (name not in latest or one.at >= latest[name].at):
                latest[name] = one
        return latest


def observations(file: Path, category: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """LOINC code and resource of each valid Observation of the one person in a bundle.

    Raises
    ------
    InputError
        No bundle, or one of several people.
    """
    subjects: set[str] = set()
    people = 0
    for resource in _resources(file):
        kind = resource.get("resourceType")
        people += kind == "Patient"
        if people > 1:
            raise _crowd(file)
        if kind != "Observation" or resource.get("status") not in STATUS:
            continue
        if category and category not in {c.get("code") for c in _codings(resource.get("category"))}:
            continue
        reference = _dict(resource.get("subject")).get("reference")
        subjects.add(str(reference))
        if len(subjects) > 1:
            raise _crowd(file)
        codes = {c.get("code") for c in _codings(resource.get("code")) if c.get("system") == LOINC}
        for code in sorted(c for c in codes if isinstance(c, str)):
            yield code, resource


def _resources(file: Path) -> Iterator[Mapping[str, Any]]:
    text = read_text(file)
    try:
        bundle = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InputError(f"{file.name} is no JSON, or is cut off", hint="export the bundle again") from None
    if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
        raise InputError(f"{file.name} is no FHIR bundle", hint="export the patient's record as a Bundle")
    for entry in _list(bundle.get("entry")):
        yield _dict(_dict(entry).get("resource"))


def _result(observation: Mapping[str, Any], name: str, file: str) -> _Found | None:
    """A result; None where the observation holds no number of this quantity's."""
    quantity = observation.get("valueQuantity")
    if not isinstance(quantity, dict) or not isinstance(quantity.get("value"), Decimal):
        return None
    time = observation.get("effectiveDateTime", _dict(observation.get("effectivePeriod")).get("end"))
    at = _instant(time)
    if at is None:
        raise InputError(
            f"{file}: a result of {name!r} has no time with its zone", hint="the latest one is wanted"
        )
    flaw = None
    if quantity.get("comparator"):
        flaw = InputError(
            f"{file}: {name!r} is a bound and no number",
            hint="it lies beyond what was measured; ask the laboratory for a number",
        )
    elif quantity.get("system") != UCUM or not isinstance(quantity.get("code"), str):
        flaw = InputError(f"{file}: {name!r} has no UCUM unit", hint=f"valueQuantity needs system {UCUM}")
    return _Found(at, str(quantity["value"]), quantity.get("code"), flaw)


def _instant(time: object) -> dt.datetime | None:
    try:
        found = dt.datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return None if found.tzinfo is None else found


def _check_digit(code: str) -> bool:
    """LOINC's last digit: mod 10, Luhn."""
    digits = [int(c) for c in reversed(code.replace("-", ""))]
    return sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)) % 10 == 0


def _crowd(file: Path) -> InputError:
    return InputError(f"{file.name} holds results of several people", hint="export one bundle a person")


def _no_constant(_: str) -> None:
    raise ValueError


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _codings(value: object) -> list[Mapping[str, Any]]:
    concepts = value if isinstance(value, list) else [value]
    return [_dict(c) for concept in concepts for c in _list(_dict(concept).get("coding"))]
