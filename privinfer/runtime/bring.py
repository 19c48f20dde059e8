"""What a party brings to a run, looked at before anything is sent: arrays, or fragments at rest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from privinfer.backends import ckks
from privinfer.backends.base import Private, Table
from privinfer.backends.ckks.moving import open_fragment
from privinfer.backends.ckks.roles import setting_of
from privinfer.errors import InputError
from privinfer.graph import ir
from privinfer.graph.ranges import check_inputs
from privinfer.protocols.ckks.release import Entry, Record
from privinfer.runtime.ledger import ReleaseLedger
from privinfer.session.fragment import Fragment
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest


def bring(
    manifest: Manifest, table: Table, identity: Identity, private: Private, inputs: Mapping[str, Any]
) -> int | None:
    """Check a party's inputs and put them into `private`.

    Parameters
    ----------
    manifest : Manifest
        Of the session.
    table : Table
        Of this join.
    identity : Identity
        The party's: it opens the keys of fragments.
    private : Private
        Takes them; whatever it had is forgotten.
    inputs : mapping
        Arrays and fragments by the inputs' names.

    Returns
    -------
    int or None
        Rows; None where the party owns no input.

    Raises
    ------
    ConfigError, InputError, IntegrityError
        Something does not fit the session.
    """
    private.forget()
    mine = {k for k, owner in manifest.inputs.items() if owner == identity.name}
    arrays, fragments = split(inputs)
    for name in fragments:
        if name not in mine:
            raise InputError(f"there is no input {name!r} here", hint=f"known: {', '.join(sorted(mine))}")
    checked = check_inputs(table.architecture, arrays, mine - set(fragments))
    rows = len(next(iter(checked.values()))) if checked else 1 if fragments else None
    if fragments:
        check_fragments(manifest.backend, fragments, rows)
        _open(table, identity, private, fragments)
    private.inputs.update(checked)
    return rows


def split(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Fragment]]:
    """Arrays, and fragments."""
    fragments = {k: v for k, v in inputs.items() if isinstance(v, Fragment)}
    return {k: v for k, v in inputs.items() if k not in fragments}, fragments


def check_fragments(backend: str, fragments: Mapping[str, Fragment], rows: int | None) -> None:
    """Raise InputError where a run with this backend and so many rows takes no fragments."""
    name = min(fragments)
    if backend != ckks.NAME:
        raise InputError(
            f"input {name!r} is a fragment, and backend {backend} takes arrays",
            hint="fragments are for sessions with backend ckks",
        )
    if rows not in (1, None):
        raise InputError(f"input {name!r} is a fragment, which is one row, and others have {rows}")


def _open(table: Table, identity: Identity, private: Private, fragments: Mapping[str, Fragment]) -> None:
    setting = setting_of(table)
    sources = {one.name: one for one in setting.plan.inputs}
    declared: dict[str, ir.Input] = {one.name: one for one in table.architecture.inputs}
    for name, fragment in fragments.items():
        bounds = (declared[name].low, declared[name].high)
        record = beside(fragment.key, identity.name)
        private.fragments[name] = open_fragment(
            fragment, identity, setting.parameters, sources[name], bounds, record
        )


def beside(key: str | os.PathLike[str], party: str) -> Record:
    """The ledger of what left under a key file, in the folder beside it; opened anew for each entry.

    Raises
    ------
    ConfigError, IntegrityError
        It is another party's, or damaged: then nothing may leave.
    """
    folder = f"{os.fspath(key)}.ledger"

    def record(entries: Sequence[Entry]) -> None:
        with ReleaseLedger(folder, party) as ledger:
            ledger.record(entries)

    record([])  # better now than when all wait
    return record
