"""What a session agrees to beyond who computes what: purpose, expiry, consent, evidence, release.

They stand in the session file under ``[terms]`` and are part of the agreement that every party signs.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from privinfer.errors import ConfigError
from privinfer.session.canonical import Value

MAX_PURPOSE = 200
MAX_DECIMALS = 12
MAX_ANSWERS = 1_000_000
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Release:
    """What of a result may leave for its receiver.

    Attributes
    ----------
    decimals : int or None
        Digits behind the point that are kept; None: all.
    epsilon, delta : float
        Differential privacy of one answer; epsilon 0 means no noise.
    sensitivity : float
        How far one person's record can move an output, in the L2 norm; outputs are noised for it.
    epsilon_budget, delta_budget : float
        What all answers of one model about one patient may add up to.
    answers : int or None
        Answers a receiver gets of one model within `hours`; None: no limit.
    hours : float
    """

    decimals: int | None = None
    epsilon: float = 0.0
    delta: float = 0.0
    sensitivity: float = 0.0
    epsilon_budget: float = 0.0
    delta_budget: float = 0.0
    answers: int | None = None
    hours: float = 24.0

    @property
    def limited(self) -> bool:
        """Whether answers are counted, so that somebody has to keep a ledger."""
        return self.noisy or self.answers is not None

    @property
    def grid(self) -> int | None:
        """The k of the grid 2**-k that results are rounded to: the finest with 2**-k >= 10**-decimals."""
        return None if self.decimals is None else (10**self.decimals).bit_length() - 1

    @property
    def rounding(self) -> float:
        """What decimals add to an error: half a step of the grid, and half a last decimal place."""
        return 0.0 if self.grid is None else 2.0 ** -(self.grid + 1) + 10.0**-self.decimals / 2  # type: ignore[operator]

    @property
    def words(self) -> str:
        """How a result is limited, to be said behind its name."""
        rounded = "" if self.decimals is None else f", rounded to {self.decimals} decimals"
        return rounded + (", noised" if self.noisy else "")

    @property
    def noisy(self) -> bool:
        """Whether noise is added."""
        return self.epsilon > 0

    def __post_init__(self) -> None:
        if self.decimals is not None and not 0 <= self.decimals <= MAX_DECIMALS:
            raise ConfigError(f"terms.release.decimals is not in 0..{MAX_DECIMALS}")
        if self.answers is not None and not 1 <= self.answers <= MAX_ANSWERS:
            raise ConfigError(f"terms.release.answers is not in 1..{MAX_ANSWERS}")
        if not 0 < self.hours <= 24 * 366:
            raise ConfigError("terms.release.hours must lie above 0 and not above a year")
        if not self.noisy:
            if any((self.delta, self.sensitivity, self.epsilon_budget, self.delta_budget)):
                raise ConfigError("terms.release.epsilon is missing: without it nothing is noised")
            return
        if not 1e-4 <= self.epsilon <= 100:
            raise ConfigError("terms.release.epsilon is not in 0.0001..100")
        if not 0 < self.delta < 0.01:
            raise ConfigError("terms.release.delta must lie above 0 and below 0.01")
        if not 0 < self.sensitivity <= 1e6:
            raise ConfigError("terms.release.sensitivity must lie above 0 and not above 1e6")
        if self.epsilon_budget < self.epsilon or self.delta_budget < self.delta:
            raise ConfigError("terms.release has a budget below what one answer costs")


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of a session.

    Attributes
    ----------
    purpose : str
        What it is for, one line; "" where nothing is said.
    expires : datetime or None
        UTC; no run begins afterwards.
    consent : str or None
        The party whose signed consent every owner asks for before it shares anything.
    weights : str or None
        Commitment to the model's weights, hex; None: the model owner makes a new one at each join.
    receipts : bool
        Whether every party keeps a signed transcript.
    release : Release
        What may leave for receivers.
    doors : dict
        From the name of an input to the digest of the door it comes through, hex: how it is prepared.
    """

    purpose: str = ""
    expires: dt.datetime | None = None
    consent: str | None = None
    weights: str | None = None
    receipts: bool = False
    release: Release = Release()
    doors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.purpose) > MAX_PURPOSE or not self.purpose.isprintable():
            raise ConfigError(f"terms.purpose is not one line of at most {MAX_PURPOSE} characters")
        if self.expires is not None and self.expires.tzinfo is None:
            raise ConfigError("terms.expires has no time zone", hint="for example 2027-01-31T12:00:00Z")
        if self.weights is not None and not _HEX64.fullmatch(self.weights):
            raise ConfigError("terms.weights is not 64 lower-case hex digits")
        for name, door in self.doors.items():
            if not _HEX64.fullmatch(door):
                raise ConfigError(
                    f"terms.doors.{name} is not 64 lower-case hex digits",
                    hint="`privinfer door show` prints a door's digest",
                )
        if self.consent is not None and not self.purpose:
            raise ConfigError("terms.purpose is missing, and a consent names one")

    def check_time(self, now: dt.datetime | None = None) -> None:
        """Raise ConfigError where the session has expired."""
        if self.expires is not None and (now or dt.datetime.now(dt.UTC)) >= self.expires:
            raise ConfigError(
                f"the session expired at {self.expires.isoformat()}",
                hint="seal a new one, or compare the clocks",
            )

    def plain(self) -> dict[str, Value]:
        """What the agreement holds of them."""
        said: dict[str, Value] = {
            "purpose": self.purpose,
            "expires": None if self.expires is None else self.expires.astimezone(dt.UTC).isoformat(),
            "consent": self.consent,
            "weights": self.weights,
            "receipts": self.receipts,
            "doors": dict(self.doors),
        }
        return said | {"release": {f.name: getattr(self.release, f.name) for f in fields(Release)}}
