"""CrypTen's n-party additive sharing, each party one rank, over this library's own transport.

INSECURE, and it says so: CrypTen's default provider lets the first rank draw all correlated randomness, so
that party alone can work out every input, weight and result; and all masks come from a Mersenne Twister.
It runs only where the insecure option ``crypten`` is named; docs/crypten.md tells the whole story.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from privinfer import insecure
from privinfer.backends.base import Network, Player, Private, Role, Table
from privinfer.backends.crypten import bounds
from privinfer.backends.crypten.library import check_installed, load
from privinfer.backends.crypten.rank import MAX_BATCH, Rank
from privinfer.errors import ConfigError
from privinfer.graph import ir
from privinfer.session.manifest import Manifest

__all__ = ["NAME", "OPTION", "Crypten", "check_installed", "precision", "ranks", "rounds", "sees", "trust"]

NAME = "crypten"
#: The insecure option that has to be named.
OPTION: Final = "crypten"


class Crypten:
    """The `crypten` protocol family."""

    name = NAME
    ordered = False

    def cast(self, manifest: Manifest) -> dict[Role, str]:
        """Role ``rank:k`` and its party; the model owner is rank 0, the dealer.

        Imports CrypTen and torch, which takes seconds: before others wait for this party.

        Raises
        ------
        ConfigError
            The insecure option is not named, CrypTen is not installed, or a role has no meaning here.
        """
        insecure.require(OPTION, manifest.insecure)
        if manifest.evaluators or manifest.helper is not None:
            raise ConfigError(
                "crypten has neither evaluators nor a helper",
                hint="every owner, the model owner and every receiver computes",
            )
        load()
        return {f"rank:{k}": party for k, party in enumerate(ranks(manifest))}

    def keeps(self, role: Role) -> bool:
        """Whether a role keeps something of what is dealt ahead: CrypTen deals while it computes."""
        return False

    def rows_at_once(self, table: Table, network: Network) -> int:
        """As many rows as there are: only `mpc` goes in chunks."""
        return MAX_BATCH

    def spare(self, manifest: Manifest) -> frozenset[str]:
        """Nobody can be done without."""
        return frozenset()

    def player(self, role: Role, table: Table, private: Private) -> Player:
        """Who plays a role."""
        return Rank(int(role.removeprefix("rank:")), table, private)


def ranks(manifest: Manifest) -> list[str]:
    """Parties by rank, in an order that every party has alike."""
    others = {*manifest.inputs.values(), *manifest.receivers.values()} - {manifest.model_owner}
    return [manifest.model_owner, *sorted(others)]


def trust(manifest: Manifest) -> str:
    """The trust statement of a session, in one sentence."""
    return (
        f"not private: {manifest.model_owner} draws all correlated randomness (CrypTen's default provider) "
        "and alone can work out every input, weight and result; and masks come from a generator that is no "
        "cryptographic one, so that others may manage the same"
    )


def sees(manifest: Manifest, name: str) -> list[str]:
    """What a party gets to see, or can work out from what it sees."""
    if name == manifest.model_owner:
        return [
            "everything, if it computes what its randomness gives away: it is CrypTen's trusted first party"
        ]
    seen = [f"its own {k}" for k, owner in manifest.inputs.items() if owner == name]
    seen.append("masked values; the masks come from a generator that is no cryptographic one")
    seen.extend(f"the result {k}" for k, receiver in manifest.receivers.items() if receiver == name)
    return seen


def precision(architecture: ir.Architecture) -> dict[str, Any]:
    """What a report says of numbers: CrypTen's fixed point, whatever the model declares for `mpc`."""
    return {
        "fractional_bits": bounds.BITS,
        "comparison_bits": 64,
        "basis": architecture.precision.basis,
        "declared_error_bound": None,
    }


def rounds(players: Mapping[Role, Player]) -> dict[str, int]:
    """One-way messages on the critical path, in the report's words; `evaluators` are all ranks here."""
    between = max(player.rounds or 0 for player in players.values())
    return {"input": 0, "compare": 1, "evaluators": between, "output": 1}
