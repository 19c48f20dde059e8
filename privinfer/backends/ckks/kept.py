"""What a player keeps of the joint keys between joins, as bytes for its party's store; as secret as the keys.

A blob names the plan it was made for: another release may plan otherwise, and its keys do not fit then.
"""

from __future__ import annotations

import cbor2
import numpy as np

from privinfer.backends.ckks.plan import Plan
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols.ckks.keys import OwnKey, PublicKey, SecretShare
from privinfer.protocols.ckks.messages import unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64


class Kept:
    """Reads what :func:`pack` wrote.

    Raises
    ------
    IntegrityError
        It was made for another plan, or by another release.
    """

    __slots__ = ("_parts", "parameters")

    def __init__(self, plan: Plan, data: bytes) -> None:
        self.parameters = plan.parameters
        try:
            found = cbor2.loads(data)
            plan_digest, self._parts = found["plan"], found["parts"]
        except (cbor2.CBORError, ValueError, EOFError, KeyError, TypeError):  # cbor2 5 and 6
            raise _other() from None
        if plan_digest != plan.digest():
            raise _other()

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __getitem__(self, name: str) -> bytes:
        part = self._parts.get(name)
        if not isinstance(part, bytes):
            raise _other()
        return part

    def residues(
        self, name: str, lead: tuple[int, ...], basis: tuple[int, ...], parameters: Parameters | None = None
    ) -> U64:
        """An array of residues over `basis`, shape (*lead, len(basis), N)."""
        try:
            return unpack(self[name], parameters or self.parameters, basis, lead, culprit=None, step="store")
        except ProtocolViolation:
            raise _other() from None

    def public(self, name: str) -> PublicKey:
        """A public key."""
        return PublicKey(self.parameters, self.residues(name, (2,), self.parameters.full))

    def secret(self, name: str) -> SecretShare:
        """What :func:`ternary` wrote."""
        coefficients = np.frombuffer(self[name], dtype=np.int8).astype(np.int64)
        if coefficients.shape != (self.parameters.n,):
            raise _other()
        return SecretShare.restore(self.parameters, coefficients)

    def own(self, name: str) -> OwnKey:
        """A whole key, from its secret and public part."""
        return OwnKey(self.secret(name), self.public(f"{name} public"))


def pack(plan: Plan, parts: dict[str, bytes]) -> bytes:
    """Bytes for a store; SECRET."""
    return cbor2.dumps({"plan": plan.digest(), "parts": parts})


def ternary(secret: SecretShare) -> bytes:
    """A ternary key, a byte a coefficient; SECRET."""
    return secret.expose().astype(np.int8).tobytes()


def array(data: U64) -> bytes:
    """Residues as they are sent."""
    return data.astype("<u8", copy=False).tobytes()


def _other() -> IntegrityError:
    return IntegrityError(
        "the store has keys of another version of the plan", hint="remove it and deal again"
    )
