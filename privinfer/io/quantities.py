"""A declared quantity: its unit, its range, what a gap is taken for. Laboratory doors are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Final

from privinfer.errors import ConfigError, InputError
from privinfer.io import units
from privinfer.session import canonical

OUTSIDE: Final = ("refuse", "clip")
_MAX_EXPONENT = 30  # a number beyond 1e30 is no measurement, and as a fraction it would fill the memory


@dataclass(frozen=True, slots=True)
class Quantity:
    """One column of a tensor.

    Attributes
    ----------
    name : str
    unit : str
        UCUM code the values come out in, before `center` and `scale`.
    low, high : float
        Closed range in that unit.
    missing : float or None
        What a gap is taken for, in that unit; None: a gap is refused.
    outside : str
        ``refuse`` or ``clip``: what happens to a value out of range.
    center, scale : float
        The tensor holds ``(value - center) / scale``.
    molar_mass : str or None
        Grams a mole, decimal; only with it mass and amount of substance convert.
    categories : dict
        Words and the numbers they stand for, in place of numbers.
    """

    name: str
    unit: str = "1"
    low: float = 0.0
    high: float = 1.0
    missing: float | None = None
    outside: str = "refuse"
    center: float = 0.0
    scale: float = 1.0
    molar_mass: str | None = None
    categories: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"quantity {self.name!r}"
        if not self.name or len(self.name) > 100 or not self.name.isprintable():
            raise ConfigError("a quantity has an empty, long or unprintable name")
        numbers = (self.low, self.high, self.center, self.scale, *self.categories.values())
        if not all(math.isfinite(v) for v in numbers) or not self.low < self.high or self.scale <= 0:
            raise ConfigError(f"{where}: low must lie below high, and scale above 0")
        if self.missing is not None and not self.low <= self.missing <= self.high:
            raise ConfigError(f"{where}: missing lies outside of low..high")
        if self.outside not in OUTSIDE:
            raise ConfigError(f"{where}: outside is not one of {', '.join(OUTSIDE)}")
        if any(not self.low <= v <= self.high for v in self.categories.values()):
            raise ConfigError(f"{where}: a category lies outside of low..high")
        try:
            units.parse(self.unit)
        except InputError as e:
            raise ConfigError(f"{where}: {e.message}", hint=e.hint) from None
        if self.mass is not None and self.mass <= 0:
            raise ConfigError(f"{where}: molar_mass is not above 0")

    @property
    def mass(self) -> Fraction | None:
        """Molar mass as a fraction."""
        if self.molar_mass is None:
            return None
        try:
            return exact(self.molar_mass, "molar_mass")
        except InputError as e:
            raise ConfigError(f"quantity {self.name!r}: {e.message}") from None

    @property
    def range(self) -> tuple[float, float]:
        """Range of what the tensor holds."""
        return self.finish(self.low), self.finish(self.high)

    def finish(self, value: float) -> float:
        """``(value - center) / scale``."""
        return (value - self.center) / self.scale

    def declaration(self) -> dict[str, canonical.Value]:
        """In plain values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "low": float(self.low),
            "high": float(self.high),
            "missing": None if self.missing is None else float(self.missing),
            "outside": self.outside,
            "center": float(self.center),
            "scale": float(self.scale),
            "molar_mass": self.molar_mass,
            "categories": {k: float(v) for k, v in self.categories.items()},
        }

    def take(self, text: str | None, unit: str | None, where: str, notes: dict[str, int]) -> float:
        """Make one entry of the tensor.

        Parameters
        ----------
        text : str or None
            As it stands in the file; None: a gap.
        unit : str or None
            UCUM code it stands in; None: the declared one.
        where : str
            What an error calls the file. The value itself is never shown.
        notes : dict
            Counts gaps, clips and conversions.
        """
        if text is None:
            if self.missing is None:
                raise InputError(
                    f"{where} has no {self.name!r}",
                    hint="add it, or declare in the door file what a missing one is taken for",
                )
            _count(notes, "filled")
            return self.finish(self.missing)
        if self.categories:
            if text not in self.categories:
                raise InputError(
                    f"{where}: {self.name!r} is none of the declared categories",
                    hint=f"known: {', '.join(sorted(self.categories))}",
                )
            return self.finish(float(self.categories[text]))
        number = exact(text, f"{where}: {self.name!r}")
        if unit is not None and unit != self.unit:
            try:
                number *= units.factor(unit, self.unit, self.mass)
            except InputError as e:
                raise InputError(f"{where}: {self.name!r}: {e.message}", hint=e.hint) from None
            _count(notes, "converted")
        value = float(number)
        if not self.low <= value <= self.high:
            if self.outside == "refuse":
                raise InputError(
                    f"{where}: {self.name!r} lies outside of {self.low:g}..{self.high:g} {self.unit}",
                    hint="is it in another unit? else widen the range in the door file, for all parties",
                )
            _count(notes, "clipped")
            value = min(max(value, self.low), self.high)
        return self.finish(value)


def exact(text: str, what: str) -> Fraction:
    """A decimal number as a fraction; InputError where it is none."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not text.isascii() or "_" in text or not number.is_finite():
        raise InputError(f"{what} is not a number", hint="write numbers with a decimal point, without unit")
    if len(number.as_tuple().digits) > 60 or (number and abs(number.adjusted()) > _MAX_EXPONENT):
        raise InputError(f"{what} is no number of this world", hint="look for a slipped decimal point")
    return Fraction(number)


def _count(notes: dict[str, int], what: str) -> None:
    notes[what] = notes.get(what, 0) + 1


def columns(quantities: tuple[Quantity, ...]) -> tuple[tuple[str, ...], tuple[str, ...], float, float]:
    """Names, units, low and high of a tensor with these columns; ConfigError where two have one name."""
    names = tuple(q.name for q in quantities)
    if not names or len(set(names)) != len(names):
        raise ConfigError("a door needs quantities, each with a name of its own")
    spans = [q.range for q in quantities]
    scaled = [q.scale != 1 or q.center != 0 for q in quantities]
    shown = tuple("1" if s else q.unit for q, s in zip(quantities, scaled, strict=True))
    return names, shown, min(low for low, _ in spans), max(high for _, high in spans)
