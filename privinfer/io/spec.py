"""Door files: the settings of a door as TOML, the same at whoever writes a session and whoever has data."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from privinfer.errors import ConfigError, InputError
from privinfer.io.dicom import Dicom
from privinfer.io.door import Door, Record
from privinfer.io.fhir import Fhir, Lab
from privinfer.io.genotypes import Genotypes
from privinfer.io.pgs import read_score
from privinfer.io.quantities import Quantity
from privinfer.io.sites import Site, read_sites
from privinfer.io.tables import Table

MAX_DOOR: Final = 1 << 20
KINDS: Final = ("dicom", "genotypes", "fhir", "table")
# suffixes that say by themselves what a file is; those of the second kind need a door file
OWN: Final = (".dcm", ".dicom")
NEEDY: Final = {
    **dict.fromkeys((".vcf", ".vcf.gz", ".bcf", ".bed", ".txt", ".txt.gz"), "genotypes"),
    **dict.fromkeys((".json", ".json.gz"), "fhir"),
    ".parquet": "table",
}


def read_door(path: str | os.PathLike[str]) -> Door:
    """Read a door file.

    Raises
    ------
    ConfigError
        It cannot be read, or a setting is unknown or of the wrong kind; the message names it.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
    except OSError as e:
        raise ConfigError(f"door file {file}: {(e.strerror or 'cannot be read').lower()}") from None
    try:
        if len(raw) > MAX_DOOR:
            raise ValueError
        top = tomllib.loads(raw.decode())
    except (ValueError, RecursionError):  # of TOML and of UTF-8 too
        raise ConfigError(
            f"door file {file} is no TOML", hint="docs/doors.md shows one of each kind"
        ) from None
    kind = top.pop("door", None)
    if kind not in KINDS:
        raise ConfigError(
            f"door file {file}: door is none of {', '.join(KINDS)}",
            hint='its first line says, for example, door = "dicom"',
        )
    make: Mapping[str, Callable[[dict[str, Any], Path], Door]] = {
        "dicom": _dicom,
        "genotypes": _genotypes,
        "fhir": _fhir,
        "table": _table,
    }
    try:
        return make[kind](top, file.parent)
    except (TypeError, ValueError, AttributeError, KeyError):
        # a dataclass got a key it does not know, or a value of another kind
        raise ConfigError(
            f"door file {file}: a setting of door {kind!r} is unknown, missing or of another kind",
            hint="docs/doors.md lists them",
        ) from None


def choose(path: str | os.PathLike[str], door: Door | None) -> Door | None:
    """The door a file goes through: the given one, else by suffix; None: a plain array.

    Raises
    ------
    InputError
        The file is of a kind that needs a door file.
    """
    if door is not None:
        return door
    name = Path(path).name.lower()
    if name.endswith(OWN):
        return Dicom()
    for suffix, kind in NEEDY.items():
        if name.endswith(suffix):
            raise InputError(
                f"{Path(path).name} needs a door file",
                hint=f'--door NAME=FILE.toml with door = "{kind}"; docs/doors.md shows one',
            )
    return None


def read_record(given: str, door: Door) -> Record:
    """Read ``FILE`` or ``FILE#ROW`` through a door."""
    file, mark, row = given.rpartition("#")
    if not mark or Path(given).exists():
        return door.read(given)
    return door.read(file, row)


def _check(values: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{key!r} is no setting of this door", hint="docs/doors.md lists them")
        wanted = kinds[key]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(
                f"setting {key!r} of the door is of another kind", hint="docs/doors.md says which"
            )


_NUMBER = (int, float)
_QUANTITY: Final = {
    **dict.fromkeys(("name", "unit", "outside", "molar_mass"), str),
    "categories": dict,
    "loinc": list,
}


def _quantity(values: Mapping[str, Any]) -> Quantity:
    numbers = dict.fromkeys(("low", "high", "missing", "center", "scale"), _NUMBER)
    _check(values, {**_QUANTITY, **numbers})
    for key in ("low", "high"):  # a default range would be a guess
        if key not in values:
            raise ConfigError(
                f"quantity {values.get('name')!r} has no {key}",
                hint="a range is declared, not guessed: low and high, in the quantity's unit",
            )
    settings: dict[str, Any] = {k: float(v) if k in numbers else v for k, v in values.items() if k != "loinc"}
    return Quantity(**settings)


def _quantities(top: dict[str, Any]) -> list[dict[str, Any]]:
    found = top.pop("quantities", None)
    if not isinstance(found, list) or not found:
        raise ConfigError("the door file has no [[quantities]]")
    return found


def _fhir(top: dict[str, Any], _: Path) -> Door:
    labs = tuple(Lab(_quantity(q), tuple(q["loinc"])) for q in _quantities(top))
    _check(top, {"category": str})
    return Fhir(labs, **top)


def _table(top: dict[str, Any], _: Path) -> Door:
    given = _quantities(top)
    if any("loinc" in q for q in given):
        raise ConfigError("quantities of a table have no loinc", hint="columns are found by name")
    quantities = tuple(_quantity(q) for q in given)
    _check(top, {"identifier": str, "gaps": list, "separator": str})
    if "gaps" in top:
        top["gaps"] = tuple(top["gaps"])
    return Table(quantities, **top)


def _dicom(top: dict[str, Any], _: Path) -> Door:
    lists = dict.fromkeys(("size", "modalities", "body_parts", "views"), list)
    words = dict.fromkeys(("resize", "fit", "orientation", "burned_in"), str)
    _check(top, {**lists, **words, "window": (str, list), "channel": bool})
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in top.items()}
    return Dicom(**settings)


def _genotypes(top: dict[str, Any], folder: Path) -> Door:
    words = dict.fromkeys(("build", "file_build", "ambiguous", "strand", "missing", "absent"), str)
    _check(top, {**words, "sites": (str, list), "score": str, "chromosomes": list, "unmapped": str})
    score, sites = top.pop("score", None), top.pop("sites", None)
    chromosomes, unmapped = tuple(top.pop("chromosomes", ())), top.pop("unmapped", "refuse")
    if (score is None) == (sites is None):
        raise ConfigError("a genotypes door has either sites or a score")
    for named in (score, sites):
        if isinstance(named, str) and not (folder / named).is_file():
            raise ConfigError(
                f"the door file names {named}, and there is no such file",
                hint="names in a door file are relative to it",
            )
    if score is not None:
        found = read_score(folder / score, top["build"], unmapped=unmapped)
        if chromosomes:
            found = found.only(chromosomes)
        return found.door(**{k: v for k, v in top.items() if k != "build"})
    if chromosomes or unmapped != "refuse":
        raise ConfigError("chromosomes and unmapped go with a score")
    if isinstance(sites, str):
        return Genotypes(read_sites(folder / sites), **top)
    return Genotypes(tuple(Site(**one) for one in sites), **top)
