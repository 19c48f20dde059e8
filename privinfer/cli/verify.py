"""`privinfer verify`: what receipts say, whether they agree, and what an opening shows."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import typer

from privinfer.errors import ConfigError, IntegrityError, printable
from privinfer.graph import ir
from privinfer.runtime.audit import Audit
from privinfer.session import opening as secret
from privinfer.session.account import summary
from privinfer.session.compare import Comparison, compare
from privinfer.session.manifest import Manifest
from privinfer.session.receipt import load


def run(
    files: Sequence[Path],
    *,
    session: Path | None = None,
    opening: Path | None = None,
    inputs: Mapping[str, npt.NDArray[Any] | Path] | None = None,
    weights: ir.Model | None = None,
    number: int | None = None,
    as_json: bool = False,
) -> None:
    """Read receipts, compare them, open commitments, and print what came of it.

    Parameters
    ----------
    files : sequence of Path
        Receipts of one join.
    session : Path, optional
        Sealed session file that they have to be of.
    opening : Path, optional
        A party's secret, to open what it committed to.
    inputs : mapping, optional
        Values, or fragments, that the opening's party says it brought.
    weights : Model, optional
        Model that the opening's party says it served.
    number : int, optional
        Which run `inputs` belong to.
    as_json : bool
        Print one JSON object.

    Raises
    ------
    ConfigError, InputError
        Files are missing or do not belong together.
    IntegrityError
        A receipt is damaged, receipts do not agree, or something else was opened; printed before.
    """
    if opening is None and (inputs or weights is not None):
        raise ConfigError("nothing can be opened", hint="--opening FILE, from the party itself")
    comparison = compare([load(file) for file in files])
    if session is not None:
        _check_session(comparison, Manifest.load(session))
    said = summary(comparison)
    said["opened"] = []
    problem: IntegrityError | None = None
    if comparison.findings:
        first = comparison.findings[0]
        problem = IntegrityError(
            first.text, culprit=" or ".join(first.suspects), hint=_proof(first.proven_by)
        )
    elif opening is not None:
        audit = Audit(comparison, secret.load(opening))
        try:
            for name, values in (inputs or {}).items():
                said["opened"].append(audit.input(name, values, number))
            if weights is not None:
                said["opened"].append(audit.weights(weights))
        except IntegrityError as error:
            problem = error
    typer.echo(json.dumps(said, indent=2, sort_keys=True) if as_json else "\n".join(_lines(said)))
    if problem is not None:
        raise problem


def _proof(signer: str | None) -> str:
    if signer is None:
        return "this proves that one of them is at fault, not which"
    return f"{signer}'s own signature proves it"


def _check_session(comparison: Comparison, manifest: Manifest) -> None:
    one = next(iter(comparison.receipts.values()))
    theirs = {p.name: p.identity.pem for p in manifest.parties}
    if one.document.get("manifest") != manifest.digest() or one.certificates != theirs:
        raise IntegrityError("these receipts are of another session file")


def _lines(said: dict[str, Any]) -> list[str]:
    model = said["model"]
    rows = [
        ("agreement", said["agreement"]),
        ("session", said["session"]),
        ("backend", said["backend"]),
        ("purpose", _clean(said["purpose"]) or "not stated"),
        ("expires", _clean(str(said["expires"] or "never"))),
        ("insecure", _clean(", ".join(said["insecure"])) or "nothing"),
        ("precision", _clean(json.dumps(said["precision"], sort_keys=True))),
        ("model", f"{model['architecture']}, of {model['owner']}"),
        ("weights", f"committed to: {model['weights']}"),
    ]
    for name, one in said["inputs"].items():
        rows.append(("input", _clean(f"{name} {tuple(one['shape'])}, of {one['owner']}")))
    for name, receiver in said["receivers"].items():
        rows.append(("output", _clean(f"{name}, for {receiver}")))
    for name, one in said["parties"].items():
        what = f"{', '.join(one['roles']) or 'no role'}; version {one['version']}"
        rows += [("party", _clean(f"{name}: {what}")), ("", f"certificate {one['certificate']}")]
    for name, one in said["receipts"].items():
        when = dt.datetime.fromtimestamp(one["started"], dt.UTC)
        runs = ", ".join(f"{r['run']} ({r['dealt']})" for r in one["runs"]) or "none"
        rows += [
            ("receipt", f"{name}: {one['outcome']}; {when:%Y-%m-%d %H:%M:%S} UTC"),
            ("", f"runs {runs}; inferences ended {one['inferences']}"),
            ("", f"sent {_amount(one['sent'])}, received {_amount(one['received'])}"),
            ("", f"accounts signed by its peers {one['signed_by_peers']}"),
        ]
        if one["missing"]:
            rows.append(("", f"went on without {', '.join(one['missing'])}"))
    for one in said["compared"]:
        rows.append(("compared", f"{one['sender']} -> {one['receiver']}: {one['messages']} messages agree"))
    for one in said["opened"]:
        for key, value in one.items():
            if isinstance(value, dict):
                rows += [("opened", f"{peer}: {what}") for peer, what in value.items()]
            else:
                rows.append(("opened", _clean(f"{key}: {value}")))
    for one in said["findings"]:
        rows += [("DIFFERS", _clean(one["text"])), ("", _proof(one["proven_by"]))]
    if not said["findings"]:
        several = len(said["receipts"]) > 1
        rows.append(("verified", "all receipts agree" if several else "the receipt agrees with itself"))
    return [f"{title:<10} {value}" for title, value in rows]


def _clean(text: str) -> str:
    """What a stranger wrote, without control characters."""
    return printable(text[:2000])


def _amount(one: Mapping[str, int]) -> str:
    return f"{one['messages']} messages, {one['bytes'] / 1e6:.3f} MB"
