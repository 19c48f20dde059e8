"""What a core and a byte cost, from a table that the user can edit."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from typing import Self

from privinfer.errors import ConfigError

TEMPLATE = """\
# What `privinfer estimate --prices prices.toml` charges. Edit it.
currency = "$"
core_hour = 0.05   # of one core while it computes
gigabyte = 0.09    # of 10**9 bytes that one party sends another
"""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of computing and of sending.

    Attributes
    ----------
    currency : str
    core_hour : float
        Of one core for an hour.
    gigabyte : float
        Of 10**9 bytes from one party to another.
    """

    currency: str = "$"
    core_hour: float = 0.05
    gigabyte: float = 0.09

    def of(self, core_seconds: float, sent: int) -> float:
        """Price of so many core-seconds and bytes."""
        return core_seconds / 3600 * self.core_hour + sent / 1e9 * self.gigabyte

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a price table.

        Raises
        ------
        ConfigError
            It cannot be read, or a key or a number is wrong; the message names it.
        """
        try:
            with open(path, "rb") as file:
                found = tomllib.load(file)
        except OSError as error:
            raise ConfigError(
                f"cannot read prices {os.fspath(path)}: {(error.strerror or 'error').lower()}"
            ) from None
        except ValueError:
            raise ConfigError(
                f"prices {os.fspath(path)} are not TOML", hint="currency, core_hour and gigabyte, a line each"
            ) from None
        known = {f.name for f in fields(cls)}
        if extra := sorted(found.keys() - known):
            raise ConfigError(
                f"prices: {extra[0][:40]} is not a known key", hint=f"known: {', '.join(sorted(known))}"
            )
        for key in ("core_hour", "gigabyte"):
            value = found.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
                raise ConfigError(f"prices: {key} is not a number from 0 on", hint=f"{key} = 0.05")
        currency = found.get("currency", "$")
        if not isinstance(currency, str) or len(currency) > 8 or not currency.isprintable():
            raise ConfigError("prices: currency is not a short text", hint='currency = "$"')
        return cls(**found)
