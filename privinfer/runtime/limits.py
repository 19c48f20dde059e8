"""What a session's terms make of its results: who counts answers, what is refused, what a report says."""

from __future__ import annotations

import os
from typing import Any

from privinfer.backends import ckks
from privinfer.backends.base import Table
from privinfer.backends.mpc import Mpc, release
from privinfer.errors import ConfigError
from privinfer.protocols.privacy import Charge
from privinfer.runtime.budget import Account, BudgetLedger
from privinfer.session.manifest import Manifest
from privinfer.session.terms import Release

Folder = str | os.PathLike[str]


def on_wires(manifest: Manifest) -> bool:
    """Whether evaluators show the results, as `mpc` and exact mode do."""
    return manifest.backend == Mpc.name or (
        manifest.backend == ckks.NAME and manifest.nonlinear == ckks.EXACT
    )


def keepers(manifest: Manifest) -> tuple[str, ...]:
    """Parties without whom no result leaves, and who count them: evaluators, or the model owner."""
    return manifest.evaluators if on_wires(manifest) else (manifest.model_owner,)


def check(manifest: Manifest, name: str, ledger: Folder | None) -> None:
    """Refuse, before anybody is called, terms that the backend cannot keep or a ledger that is missing.

    Raises
    ------
    ConfigError
        With what would help.
    """
    terms = manifest.terms.release
    refuse(manifest.backend, terms, on_wires(manifest))
    if terms.limited and name in keepers(manifest) and ledger is None:
        raise ConfigError(
            f"{name} counts this session's answers and has no ledger",
            hint="join with ledger=DIR (--ledger DIR), the same folder each time",
        )


def refuse(backend: str, terms: Release, wires: bool) -> None:
    """Raise ConfigError where a backend cannot keep such terms."""
    if wires:
        return
    hint = 'mpc can, and ckks with nonlinear = "exact"'
    if terms.noisy and backend != ckks.NAME:
        raise ConfigError(f"backend {backend} adds no noise to results", hint="mpc and ckks do")
    if terms.decimals is not None:
        raise ConfigError(f"backend {backend} cannot round results before they are shown", hint=hint)


class Keeper:
    """One party's account of a session, as players see it: a `privacy.Budget`.

    Parameters
    ----------
    manifest : Manifest
        Of the session.
    name : str
        This party.
    folder : path
        Its ledger.
    """

    def __init__(self, manifest: Manifest, name: str, folder: Folder) -> None:
        self.terms = manifest.terms.release
        identities = {p.name: p.identity for p in manifest.parties}
        keys = {r: identities[r].key_digest for r in manifest.receivers.values()}
        consents = manifest.terms.consent
        patient = "" if consents is None else identities[consents].key_digest
        self.account = Account(manifest.model, manifest.terms.weights or "", patient, keys)
        self.ledger = BudgetLedger(folder, name)

    @classmethod
    def open(cls, manifest: Manifest, name: str, folder: Folder | None) -> Keeper | None:
        """The keeper, where this party is one; see :func:`check`."""
        check(manifest, name, folder)
        if not manifest.terms.release.limited or name not in keepers(manifest) or folder is None:
            return None
        return cls(manifest, name, folder)

    def check(self, charges: list[Charge]) -> None:
        """Raise ConsentError where these would not be granted now."""
        self.ledger.spend(self.account, self.terms, charges, dry=True)

    def spend(self, charges: list[Charge]) -> None:
        """Write them down, durably, or raise ConsentError."""
        self.ledger.spend(self.account, self.terms, charges)

    def left(self) -> dict[str, Any]:
        """What each receiver has left."""
        return {r: self.ledger.left(self.account, self.terms, r) for r in sorted(self.account.receivers)}

    def close(self) -> None:
        """Give the ledger back."""
        self.ledger.close()


def describe(manifest: Manifest, table: Table, keeper: Keeper | None) -> dict[str, Any] | None:
    """What a report says of the release: settings, noise, and what is left; None where nothing is limited."""
    terms = manifest.terms.release
    if terms == Release():
        return None
    said: dict[str, Any] = {"decimals": terms.decimals, "grid_bits": terms.grid}
    if terms.noisy:
        said |= {"epsilon": terms.epsilon, "delta": terms.delta, "sensitivity": terms.sensitivity}
        said["sigma"] = release.deviations(table) if on_wires(manifest) else ckks.noise(table)
    if terms.limited:
        said["counted_by"] = list(keepers(manifest))
    if keeper is not None:
        said["left"] = keeper.left()
    return said
