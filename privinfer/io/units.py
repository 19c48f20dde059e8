"""UCUM units, the part that laboratories write: exact factors, or a refusal.

Own grammar and table instead of a units library, for two reasons: factors are exact fractions, and nothing
converts that UCUM leaves open. International units (``[iU]``) are arbitrary, so they are no enzyme units
(``U``); an annotation such as ``{1.73_m2}`` is part of the unit, although UCUM gives it no meaning, because
dropping it would turn a normalised clearance into another quantity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from privinfer.errors import InputError

Dimension = tuple[tuple[str, int], ...]

_PREFIXES: Final = {
    **{"G": 9, "M": 6, "k": 3, "h": 2, "da": 1},
    **{"d": -1, "c": -2, "m": -3, "u": -6, "n": -9, "p": -12, "f": -15},
}
_DAY = 86400
# atom: factor, dimension, whether prefixes go with it (UCUM's table, case sensitive)
_ATOMS: Final[dict[str, tuple[Fraction, dict[str, int], bool]]] = {
    "m": (Fraction(1), {"m": 1}, True),
    "g": (Fraction(1), {"g": 1}, True),
    "s": (Fraction(1), {"s": 1}, True),
    "min": (Fraction(60), {"s": 1}, False),
    "h": (Fraction(3600), {"s": 1}, False),
    "d": (Fraction(_DAY), {"s": 1}, False),
    "wk": (Fraction(7 * _DAY), {"s": 1}, False),
    "a": (Fraction(36525 * _DAY, 100), {"s": 1}, False),
    "L": (Fraction(1, 1000), {"m": 3}, True),
    "l": (Fraction(1, 1000), {"m": 3}, True),
    "mol": (Fraction(1), {"mol": 1}, True),
    "eq": (Fraction(1), {"eq": 1}, True),  # UCUM: a mole; but of charges, so no moles of substance here
    "osm": (Fraction(1), {"osm": 1}, True),
    "kat": (Fraction(1), {"mol": 1, "s": -1}, True),
    "U": (Fraction(1, 60_000_000), {"mol": 1, "s": -1}, True),
    "[iU]": (Fraction(1), {"[iU]": 1}, True),
    "[IU]": (Fraction(1), {"[iU]": 1}, True),
    "Pa": (Fraction(1000), {"g": 1, "m": -1, "s": -2}, True),
    "m[Hg]": (Fraction(133_322_000), {"g": 1, "m": -1, "s": -2}, True),
    "Cel": (Fraction(1), {"Cel": 1}, False),  # a temperature and no difference: only like to like
    "[pH]": (Fraction(1), {"[pH]": 1}, False),
    "%": (Fraction(1, 100), {}, False),
}
_COMPONENT = re.compile(
    r"(?:10[*^](?P<power>[+-]?\d{1,2})|(?P<atom>[A-Za-z%\[\]]+?)(?P<exponent>[+-]?\d)?|(?P<number>\d{1,6}))?"
    r"(?P<note>\{[\x21-\x7a|~]{0,40}\})?"
)
MAX_CODE: Final = 80


@dataclass(frozen=True, slots=True)
class Unit:
    """A parsed unit: `factor` times the base units in `dimension`."""

    code: str
    factor: Fraction
    dimension: Dimension

    @property
    def shape(self) -> dict[str, int]:
        """The dimension as a dictionary."""
        return dict(self.dimension)


def parse(code: str) -> Unit:
    """Read a UCUM code.

    Raises
    ------
    InputError
        It is no code, or one that is not in the table.
    """
    if not 0 < len(code) <= MAX_CODE or not code.isascii() or not code.isprintable():
        raise InputError("a unit is empty, too long or not in ASCII")
    factor, found = Fraction(1), dict[str, int]()
    # the separators of a code; those inside an annotation are none
    parts = re.findall(r"[./]|(?:\{[^{}]*\}|[^./{}])+", code)
    if "".join(parts) != code:
        raise _unknown(code)
    if parts[0] != "/":
        parts.insert(0, ".")
    if len(parts) % 2:
        raise _unknown(code)
    for sign, part in zip(parts[::2], parts[1::2], strict=True):
        if sign not in "./" or part in "./":
            raise _unknown(code)
        one, dimension = _component(part, code)
        power = -1 if sign == "/" else 1
        factor *= one**power
        for base, exponent in dimension.items():
            found[base] = found.get(base, 0) + power * exponent
    return Unit(code, factor, tuple(sorted((b, e) for b, e in found.items() if e)))


def _component(text: str, code: str) -> tuple[Fraction, dict[str, int]]:
    match = _COMPONENT.fullmatch(text)
    if match is None or not text:
        raise _unknown(code)
    note = {match["note"]: 1} if match["note"] else {}
    if match["power"] is not None:
        return Fraction(10) ** int(match["power"]), note
    if match["number"] is not None:
        if int(match["number"]) == 0:
            raise _unknown(code)
        return Fraction(int(match["number"])), note
    if match["atom"] is None:
        return Fraction(1), note
    factor, dimension = _atom(match["atom"], code)
    exponent = int(match["exponent"] or 1)
    return factor**exponent, {b: e * exponent for b, e in dimension.items()} | note


def _atom(text: str, code: str) -> tuple[Fraction, dict[str, int]]:
    if text in _ATOMS:
        return _ATOMS[text][:2]
    for prefix, power in _PREFIXES.items():
        atom = _ATOMS.get(text.removeprefix(prefix)) if text.startswith(prefix) else None
        if atom is not None and atom[2]:
            return atom[0] * Fraction(10) ** power, atom[1]
    raise _unknown(code)


def _unknown(code: str) -> InputError:
    return InputError(f"unit {code!r} is unknown", hint="units are UCUM codes: mg/dL, mmol/L, 10*9/L, U/L")


def factor(source: str, target: str, molar_mass: Fraction | None = None) -> Fraction:
    """What a number in `source` is multiplied by to be in `target`.

    Parameters
    ----------
    source, target : str
        UCUM codes.
    molar_mass : Fraction, optional
        Grams a mole; without it mass and amount of substance do not convert.

    Raises
    ------
    InputError
        A unit is unknown, or they measure different things.
    """
    if source == target:
        parse(source)
        return Fraction(1)
    given, wanted = parse(source), parse(target)
    if given.dimension == wanted.dimension:
        return given.factor / wanted.factor
    lost = {
        base: given.shape.get(base, 0) - wanted.shape.get(base, 0)
        for base in {*given.shape, *wanted.shape}
        if given.shape.get(base, 0) != wanted.shape.get(base, 0)
    }
    if lost in ({"g": 1, "mol": -1}, {"g": -1, "mol": 1}):
        if molar_mass is None:
            raise InputError(
                f"unit {source!r} does not become {target!r} without a molar mass",
                hint="give the quantity a molar_mass (g/mol) in the door file",
            )
        return given.factor / wanted.factor * molar_mass ** -lost["g"]
    raise InputError(
        f"unit {source!r} measures something else than {target!r}",
        hint="correct the unit where the data come from; nothing is guessed",
    )
