"""The secret beside a receipt: what an owner shows an auditor, and nobody else, if it ever has to.

Salts of the commitments to inputs and weights, keys of the tags, and the signatures of masked inputs. Who has
it and a receipt can search for contents, so it lies in a file of its own that others cannot read.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Final

from privinfer.errors import ConfigError, IntegrityError, ProtocolViolation
from privinfer.session import canonical

FORMAT: Final = "privinfer/opening/1"
MAX_BYTES: Final = 64 << 20
_SECRET = 32


@dataclass(slots=True, repr=False)
class Opened:
    """Secrets of one party about one join.

    Attributes
    ----------
    session : bytes
        Digest of the agreement.
    party : str
    keys : dict
        Peer to the key of the tags.
    inputs : dict
        Number of a run and name of an input to the salt of its commitment.
    weights : bytes or None
        Salt of the commitment to the weights, at the model owner.
    joint : bytes or None
        With backend `ckks`: the joint public key under which this party encrypted.
    signatures : dict
        SHA-256 of what was signed, hex, to the signature: what went along with masked inputs.
    """

    session: bytes
    party: str
    keys: dict[str, bytes]
    inputs: dict[tuple[int, str], bytes] = field(default_factory=dict)
    weights: bytes | None = None
    joint: bytes | None = None
    signatures: dict[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Opened({self.party!r}, {len(self.inputs)} inputs, hidden)"

    def __reduce__(self) -> str:
        raise TypeError("an opening is secret and is not pickled")

    def to_bytes(self) -> bytes:
        """SECRET bytes of the file."""
        return canonical.dumps(
            {
                "format": FORMAT,
                "session": self.session,
                "party": self.party,
                "keys": self.keys,
                "inputs": [{"run": r, "name": n, "salt": s} for (r, n), s in sorted(self.inputs.items())],
                "weights": self.weights,
                "joint": self.joint,
                "signatures": self.signatures,
            }
        )


def load(path: str | os.PathLike[str]) -> Opened:
    """Read an opening.

    Raises
    ------
    ConfigError
        It is missing, or others can read it.
    IntegrityError
        It is damaged.
    """
    shown = os.fspath(path)
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
                raise ConfigError(f"opening {shown} can be read by others", hint=f"chmod 600 {shown}")
            data = file.read(min(MAX_BYTES, os.fstat(file.fileno()).st_size) + 1)  # else room for all of it
    except OSError as error:
        raise ConfigError(f"cannot read opening {shown}: {(error.strerror or 'error').lower()}") from None
    try:
        return _parse(data)
    except ProtocolViolation as error:
        raise IntegrityError(error.message, hint="get it again from the party that wrote it") from None


def _parse(data: bytes) -> Opened:
    what = "opening"
    fields = canonical.Fields(canonical.loads(data, what, None, MAX_BYTES), what)
    if fields.take("format", str) != FORMAT:
        raise ProtocolViolation("opening is of another version")
    found = Opened(fields.take("session", bytes, _SECRET), fields.take("party", str), {})
    found.keys = _secrets(fields.take("keys", dict), _SECRET)
    found.signatures = _secrets(fields.take("signatures", dict), 64)
    for value in fields.take("inputs", list):
        one = canonical.Fields(value, what)
        key = one.take("run", int), one.take("name", str)
        found.inputs[key] = one.take("salt", bytes, _SECRET)
        one.finish()
    weights = fields.take("weights", object)
    if weights is not None and not (isinstance(weights, bytes) and len(weights) == _SECRET):
        raise ProtocolViolation("opening has no proper weights")
    found.weights = weights
    joint = fields.take("joint", object)
    if joint is not None and not isinstance(joint, bytes):
        raise ProtocolViolation("opening has no proper joint key")
    found.joint = joint
    fields.finish()
    return found


def _secrets(value: dict[str, object], size: int) -> dict[str, bytes]:
    found = {k: v for k, v in value.items() if isinstance(v, bytes) and len(v) == size}
    if len(found) != len(value):
        raise ProtocolViolation("opening has a key or signature of another size")
    return found
