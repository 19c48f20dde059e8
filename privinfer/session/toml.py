"""TOML files of ours: each key is read once with the type asked for and the rest refused; one form to write.

Session files, drafts, templates and `serve.toml`. Whatever is wrong is a ConfigError that names the key.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import tomllib
from collections.abc import Mapping

from privinfer.errors import ConfigError

MAX_FILE = 1 << 20
MAX_LINE = 4096  # no line of ours is longer; bounds what nested or dotted TOML can cost
MAX_SECONDS = 86400.0
MAX_NUMBER = 1e7
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.IGNORECASE)
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def check_seconds(key: str, value: object) -> float:
    """A number of seconds, above 0 and at most a day."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is not a number of seconds")
    if not 0 < value <= MAX_SECONDS:  # false for NaN too
        raise ConfigError(f"{key} must lie above 0 and not above {MAX_SECONDS:g} seconds")
    return float(value)


def check_positive(key: str, value: object) -> float:
    """A number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_NUMBER:
        raise ConfigError(f"{key} is not a number above 0 and not above {MAX_NUMBER:g}")
    return float(value)


def check_key(title: str, key: object) -> str:
    """A name of an input or output."""
    if not isinstance(key, str) or not 1 <= len(key) <= 128 or not key.isprintable():
        raise ConfigError(f"{title} has a name that is not 1 to 128 printable characters")
    return key


def split_address(address: str) -> tuple[str, int] | None:
    """Split ``host:port`` or ``[ipv6]:port``; None if it is neither."""
    host, colon, digits = address.rpartition(":")
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", digits) or int(digits) > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        try:
            ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return None
        if "%" in host:  # a zone means something on one machine only
            return None
    else:
        if len(host) > 253 or not _HOST.fullmatch(host):
            return None
        if not re.fullmatch(r"[0-9.]+", host):
            return host.lower(), int(digits)
        try:
            ip = ipaddress.IPv4Address(host)
        except ValueError:
            return None
    if ip.is_unspecified or ip.is_multicast:  # nobody can be dialled there
        return None
    return str(ip), int(digits)


class Table:
    """A TOML table that hands out each key once, with the type asked for, and refuses the rest."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where
        self._left = set(values)

    def path(self, key: str) -> str:
        """What errors call a key."""
        shown = key if _BARE.fullmatch(key) and len(key) <= 64 else quote(key[:64])
        return f"{self._where}.{shown}" if self._where else shown

    def has(self, key: str) -> bool:
        """Whether a key is there."""
        return key in self._values

    def required(self, key: str, hint: str | None = None) -> object:
        """A value of any type."""
        if key not in self._values:
            raise ConfigError(f"{self.path(key)} is missing", hint=hint)
        self._left.discard(key)
        return self._values[key]

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        if self._left:
            raise ConfigError(f"{self.path(min(self._left))} is not a known key")

    def text(self, key: str) -> str:
        """A string."""
        value = self.required(key)
        if not isinstance(value, str):
            raise ConfigError(f"{self.path(key)} is not a string")
        return value

    def integer(self, key: str) -> int:
        """An integer."""
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.path(key)} is not an integer")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.required(key)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path(key)} is neither true nor false")
        return value

    def moment(self, key: str) -> dt.datetime:
        """A time with its zone."""
        value = self.required(key)
        if not isinstance(value, dt.datetime) or value.tzinfo is None:
            raise ConfigError(
                f"{self.path(key)} is not a time with its zone", hint="for example 2027-01-31T12:00:00Z"
            )
        return value

    def seconds(self, key: str, default: float | None) -> float:
        """A number of seconds, or the default where the key is missing."""
        if default is not None and not self.has(key):
            return default
        return check_seconds(self.path(key), self.required(key))

    def positive(self, key: str, default: float) -> float:
        """A number above 0, or the default where the key is missing."""
        return check_positive(self.path(key), self.required(key)) if self.has(key) else default

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """An array of at most `most` strings."""
        items: list[str] = []
        for i, value in enumerate(self._list(key, most)):
            if not isinstance(value, str):
                raise ConfigError(f"{self.path(key)}[{i}] is not a string")
            items.append(value)
        return tuple(items)

    def table(self, key: str) -> Table:
        """A table."""
        value = self.required(key)
        if not isinstance(value, dict):
            raise ConfigError(f"{self.path(key)} is not a table")
        return Table(value, self.path(key))

    def tables(self, key: str, most: int) -> list[Table]:
        """An array of at most `most` tables."""
        found: list[Table] = []
        for i, value in enumerate(self._list(key, most)):
            if not isinstance(value, dict):
                raise ConfigError(f"{self.path(key)}[{i}] is not a table")
            found.append(Table(value, f"{self.path(key)}[{i}]"))
        return found

    def mapping(self, most: int) -> dict[str, str]:
        """All of the table: 1 to `most` names with strings."""
        if not 1 <= len(self._values) <= most:
            raise ConfigError(f"{self._where} must have 1 to {most} entries")
        return {check_key(self._where, key): self.text(key) for key in self._values}

    def _list(self, key: str, most: int) -> list[object]:
        value = self.required(key)
        if not isinstance(value, list):
            raise ConfigError(f"{self.path(key)} is not an array")
        if len(value) > most:
            raise ConfigError(f"{self.path(key)} has more than {most} entries")
        return value


def parse(raw: bytes) -> dict[str, object]:
    """Read the bytes of such a file; bounds what they can cost."""
    if len(raw) > MAX_FILE:
        raise ConfigError(f"session file is longer than {MAX_FILE} bytes")
    if any(len(line) > MAX_LINE for line in raw.split(b"\n")):
        raise ConfigError(f"session file has a line of more than {MAX_LINE} bytes")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ConfigError("session file is not UTF-8") from exc
    except (ValueError, RecursionError) as exc:  # ValueError: bad TOML, and numbers with too many digits
        where = re.search(r"line \d+", str(exc))
        raise ConfigError(f"session file is not TOML{f' ({where[0]})' if where else ''}") from exc


def quote(text: str) -> str:
    """Return a TOML basic string."""
    parts = []
    for char in text:
        if char in '"\\':
            parts.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            parts.append(f"\\u{ord(char):04X}")
        else:
            parts.append(char)
    return '"' + "".join(parts) + '"'


def bare(name: str) -> str:
    """A key, quoted where it has to be."""
    return name if _BARE.fullmatch(name) else quote(name)


def array(items: tuple[str, ...]) -> str:
    """A TOML array of strings."""
    return "[" + ", ".join(map(quote, items)) + "]"
