"""Output to a receiver R, and to nobody else.

Functionality: E1 and E2 hold y^ = y + r1 + r2 mod 2**n; R learns y. E1 sends (y^, r1), E2 sends
(digest of y^, r2), each sealed to R's key of this run (sealing.py).
Adversary: semi-honest, one of E1, E2, H; neither evaluator has the other's half of the mask.
Rounds: 1. Bytes: 2 n / 8 a value + 48 from E1, n / 8 a value + 80 from E2. Correctness error: none.
Source: docs/protocols.md, output.

With noise (differential privacy), R learns y + e1 + e2. E_i draws e_i itself (gaussian.py); both draw u1 and
u2 from a seed of their own that H lacks, and y^ + u1 + u2, r1 + u1 - e1, r2 + u2 - e2 take the places of
y^, r1, r2. To R with any one of E1, E2, H these are uniform but for their sum: with E_i it knows e_i, and
the other's noise is all that is counted on; with H it knows r1 and r2, and u1, u2 hide e1 and e2.
"""

from __future__ import annotations

import hashlib
import hmac

from privinfer.errors import ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc.dealing import pack, packed_size, unpack
from privinfer.protocols.mpc.wires import Masked, MaskShare, masked
from privinfer.protocols.randomness import U64
from privinfer.protocols.sealing import OVERHEAD

DIGEST_BYTES = 32


def message_size(step: fp.Step, evaluator: int, batch: int) -> int:
    """Bytes that E1 (0) or E2 (1) sends, sealed."""
    size = packed_size(batch * step.type.size, step.type.bits)
    return OVERHEAD + (2 * size if evaluator == 0 else DIGEST_BYTES + size)


def message(evaluator: int, wire: Masked, mask: MaskShare) -> bytes:
    """What one evaluator says to R; it is sealed before it leaves."""
    y, r = pack(wire.values, wire.bits), pack(mask.values, mask.bits)
    return (y if evaluator == 0 else hashlib.sha256(y).digest()) + r


def noised(
    wire: Masked, mask: MaskShare, evaluator: int, noise: U64, veil: tuple[U64, U64]
) -> tuple[Masked, MaskShare]:
    """What takes the places of y^ and r_i: under the veil (u1, u2), and less the noise e_i."""
    y = fp.low_bits(wire.values + veil[0] + veil[1], wire.bits)
    r = fp.low_bits(mask.values + veil[evaluator] - noise, mask.bits)
    return masked(y, wire.bits), MaskShare(r, mask.bits)


def reveal(step: fp.Step, batch: int, from_first: bytes, from_second: bytes, evaluators: str) -> U64:
    """Receiver: y = y^ - r1 - r2, if both evaluators hold the same y^.

    Raises
    ------
    ProtocolViolation
        They do not; R cannot tell which of the two is wrong, so both are named.
    """
    n, shape = step.type.bits, (batch, *step.type.shape)
    size = packed_size(batch * step.type.size, n)
    y = from_first[:size]
    if not hmac.compare_digest(hashlib.sha256(y).digest(), from_second[:DIGEST_BYTES]):
        raise ProtocolViolation("hold two different results", culprit=evaluators, step=step.node)
    try:
        masks = unpack(from_first[size:], n, shape) + unpack(from_second[DIGEST_BYTES:], n, shape)
        return fp.low_bits(unpack(y, n, shape) - masks, n)
    except ValueError:
        raise ProtocolViolation("sent a malformed result", culprit=evaluators, step=step.node) from None
