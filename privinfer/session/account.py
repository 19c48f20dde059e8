"""What a receipt says in plain words and numbers, for people and for `privinfer verify --json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.session import canonical
from privinfer.session.compare import Comparison
from privinfer.session.receipt import Entry, Leg, Receipt, outcome_of


@dataclass(frozen=True, slots=True)
class Facts:
    """What the agreement of a join says, as far as an audit needs it.

    Attributes
    ----------
    session, backend, nonlinear : str
    roles : dict
        Party to its roles.
    certificates : dict
        Party to the SHA-256 of its certificate, hex.
    versions : dict
        Party to its version of this library.
    evaluators : tuple of str
    helper : str or None
    model_owner, architecture : str
        The architecture by its SHA-256, hex.
    weights : bytes
        Commitment.
    inputs : dict
        Name to owner and shape.
    receivers : dict
        Output to party.
    insecure : tuple of str
    precision, terms : dict
    """

    session: str
    backend: str
    nonlinear: str
    roles: dict[str, list[str]]
    certificates: dict[str, str]
    versions: dict[str, str]
    evaluators: tuple[str, ...]
    helper: str | None
    model_owner: str
    architecture: str
    weights: bytes
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    receivers: dict[str, str]
    insecure: tuple[str, ...]
    precision: dict[str, Any]
    terms: dict[str, Any]


def facts(receipt: Receipt) -> Facts:
    """Read the agreement in a receipt.

    Raises
    ------
    IntegrityError
        It has another form.
    """
    try:
        return _facts(receipt)
    except (ProtocolViolation, TypeError, ValueError, AttributeError, KeyError):
        raise IntegrityError(
            f"the agreement in {receipt.party}'s receipt cannot be read", culprit=receipt.party
        ) from None


def _facts(receipt: Receipt) -> Facts:
    what = "agreement"
    fields = canonical.Fields(canonical.loads(receipt.agreement.document, what), what)
    backend = canonical.Fields(fields.take("backend", dict), what)
    model = canonical.Fields(fields.take("model", dict), what)
    parties: dict[str, Any] = fields.take("parties", dict)
    inputs = {}
    for name, value in fields.take("inputs", dict).items():
        one = canonical.Fields(value, what)
        inputs[name] = (one.take("owner", str), tuple(int(n) for n in one.take("shape", list)))
    helper = fields.take("helper", object)
    return Facts(
        session=fields.take("session", str),
        backend=backend.take("name", str),
        nonlinear=backend.take("nonlinear", str),
        roles={str(k): [str(r) for r in v] for k, v in fields.take("roles", dict).items()},
        certificates={name: _hex(one["certificate"]) for name, one in parties.items()},
        versions={name: str(one["version"]) for name, one in parties.items()},
        evaluators=tuple(str(name) for name in fields.take("evaluators", list)),
        helper=None if helper is None else str(helper),
        model_owner=model.take("owner", str),
        architecture=model.take("architecture", bytes, 32).hex(),
        weights=model.take("weights", bytes, 32),
        inputs=inputs,
        receivers={str(k): str(v) for k, v in fields.take("receivers", dict).items()},
        insecure=tuple(str(name) for name in backend.take("insecure", list)),
        precision=dict(fields.take("precision", dict)),
        terms=dict(fields.take("terms", dict)),
    )


def _hex(value: object) -> str:
    if not isinstance(value, bytes):  # of a number, bytes() would make as many zeros
        raise TypeError("not bytes")
    return value.hex()


def commitments(receipt: Receipt, run: int) -> dict[str, bytes]:
    """Name of each input to its owner's commitment, as said when a run began.

    Raises
    ------
    IntegrityError
        There is no such run, or what was said cannot be read.
    """
    entered = next((one for one in receipt.entered if one.run == run), None)
    if entered is None:
        raise IntegrityError(f"{receipt.party}'s receipt has no run {run}")
    found: dict[str, bytes] = {}
    for party, content in entered.said.items():
        try:
            said: Any = canonical.loads(content, "statement", party)
            inputs = said["inputs"]
            found |= {str(k): v for k, v in inputs.items() if isinstance(v, bytes)}
        except (ProtocolViolation, TypeError, KeyError, AttributeError):
            raise IntegrityError("what was said when the run began cannot be read", culprit=party) from None
    return found


def legs_of(receipt: Receipt, run: int) -> list[tuple[int, Leg]]:
    """The legs of a run with their numbers; several where it went in chunks."""
    later = [one.run for one in receipt.entered if one.run > run]
    end = min(later, default=len(receipt.legs))
    return list(enumerate(receipt.legs))[run:end]


def summary(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain data: what is agreed, each receipt, what does not agree."""
    first = next(iter(comparison.receipts.values()))
    f = facts(first)
    return {
        "agreement": first.agreement.digest.hex(),
        "session": f.session,
        "backend": f.backend if f.nonlinear != "exact" else f"{f.backend}, exact",
        "purpose": str(f.terms.get("purpose", "")),
        "expires": f.terms.get("expires"),
        "insecure": list(f.insecure),
        "precision": _plain(f.precision),
        "model": {"owner": f.model_owner, "architecture": f.architecture, "weights": f.weights.hex()},
        "inputs": {name: {"owner": owner, "shape": list(shape)} for name, (owner, shape) in f.inputs.items()},
        "receivers": f.receivers,
        "parties": {
            name: {"roles": f.roles.get(name, []), "certificate": certificate, "version": f.versions[name]}
            for name, certificate in f.certificates.items()
        },
        "receipts": {name: _of(one) for name, one in comparison.receipts.items()},
        "compared": [
            {"sender": s, "receiver": r, "messages": count} for (s, r), count in comparison.agreed.items()
        ],
        "findings": [
            {"text": one.text, "suspects": list(one.suspects), "proven_by": one.proven_by}
            for one in comparison.findings
        ],
    }


def _of(one: Receipt) -> dict[str, Any]:
    sizes = {True: 0, False: 0}
    counts = {True: 0, False: 0}
    for leg in one.legs:
        for sent, chains in ((True, leg.sent), (False, leg.received)):
            for data in chains.values():
                entries = list(Entry.split(data))
                counts[sent] += len(entries)
                sizes[sent] += sum(entry.fields[4] for entry in entries)
    return {
        "outcome": outcome_of(one),
        "code": one.code,
        "culprit": one.culprit,
        "runs": [{"run": e.run, "dealt": e.dealt} for e in one.entered],
        "inferences": sum(1 for leg in one.legs if leg.own),
        "started": one.started / 1e6,
        "sent": {"messages": counts[True], "bytes": sizes[True]},
        "received": {"messages": counts[False], "bytes": sizes[False]},
        "signed_by_peers": sum(len(leg.peers) for leg in one.legs),
        "missing": one.missing,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.hex() if isinstance(value, bytes) else value
