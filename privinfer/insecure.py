"""Everything that gives up a protection, by name: nothing here happens unless the caller names it.

Names used in a run stand in the session file and in the run's report, under ``insecure``.
"""

from __future__ import annotations

from typing import Final

from privinfer.errors import ConfigError

#: Compute on plaintext in one process, with the fixed-point arithmetic of the protocols (backend "plain").
PLAINTEXT: Final = "plaintext"

#: Compute with CrypTen, whose first party deals and can read everything (backend "crypten", docs/crypten.md).
CRYPTEN: Final = "crypten"

KNOWN: Final = frozenset({PLAINTEXT, CRYPTEN})


def require(option: str, named: tuple[str, ...]) -> None:
    """Raise ConfigError unless the caller has named an insecure option."""
    if option not in named:
        raise ConfigError(
            f"this needs the insecure option {option!r}, which was not named",
            hint=f"pass insecure=(privinfer.insecure.{option.upper()},) if you mean it",
        )


def check_known(named: tuple[str, ...]) -> None:
    """Raise ConfigError for a name that means nothing here."""
    for option in named:
        if option not in KNOWN:
            raise ConfigError(
                f"unknown insecure option {option!r}", hint=f"known: {', '.join(sorted(KNOWN))}"
            )
