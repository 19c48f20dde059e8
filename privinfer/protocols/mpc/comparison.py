"""Comparison of a public masked value with a secret mask, by a distributed comparison function (DCF).

Functionality: H knows a threshold t < 2**D, E1 and E2 know u < 2**D; E_i obtains a bit c_i with
c_1 xor c_2 = [u < t].
Adversary: semi-honest, one of E1, E2, H. A key alone is pseudorandom and hides t.
Preprocessing: a key an evaluator of 16 (L + 1) bytes and L bits a value, L = max(D - 7, 0) levels; the
root seed comes from the stream. Rounds: none. Correctness error: none. Each key serves one u: two
evaluations of one key would be harmless in themselves, but their mask would serve two values.
Source: Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee, "Function secret sharing for mixed-mode and
fixed-point secure computation", Eurocrypt 2021 (eprint 2020/1392), figure 1; the last seven levels are
packed into one 128-bit leaf (Boyle, Gilboa, Ishai, CCS 2016, section 3.2.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer import _kernels
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed, packed_size, tweak
from privinfer.protocols.randomness import U64, Secret

BLOCK = 16
Bytes = npt.NDArray[np.uint8]


def levels(domain_bits: int) -> int:
    """Depth of the tree above the packed leaves."""
    return max(domain_bits - 7, 0)


def key_size(count: int, domain_bits: int) -> int:
    """Bytes the helper sends EACH evaluator for `count` keys."""
    depth = levels(domain_bits)
    return count * BLOCK * (depth + 1) + packed_size(count, max(depth, 1)) * (depth > 0)


def deal(dealer: Dealer, threshold: U64, domain_bits: int) -> None:
    """Helper: one key pair a threshold."""
    t = np.ascontiguousarray(threshold).reshape(-1)
    roots = np.stack([s.draw_blocks(dealer.label("root"), t.size) for s in dealer.streams], axis=1)
    cw, vcw, leaf = _kernels.dcf_gen(
        t, domain_bits, np.ascontiguousarray(roots), tweak(dealer.scope, dealer.step)
    )
    dealer.common.extend((cw.data, leaf.data))
    if levels(domain_bits):
        dealer.common.append(packed(vcw, levels(domain_bits)))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ComparisonKeys(Secret):
    """One evaluator's keys for a whole tensor."""

    evaluator: int
    domain_bits: int
    roots: Bytes
    cw: Bytes
    vcw: U64
    leaf: Bytes
    tweak: bytes

    @classmethod
    def take(cls, dealt: Dealt, count: int, domain_bits: int) -> ComparisonKeys:
        """Read this evaluator's keys from its parcel."""
        depth = levels(domain_bits)
        cw = dealt.receive((count, depth, BLOCK // 8), 64).view(np.uint8)
        leaf = dealt.receive((count, BLOCK // 8), 64).view(np.uint8)
        vcw = dealt.receive((count,), depth) if depth else np.zeros(count, dtype=np.uint64)
        roots = dealt.stream.draw_blocks(dealt.label("root"), count)
        return cls(dealt.evaluator, domain_bits, roots, cw, vcw, leaf, tweak(dealt.scope, dealt.step))

    def less(self, u: U64) -> U64:
        """Share of [u < t], 0 or 1, in u's shape."""
        bits = _kernels.dcf_eval(
            self.evaluator,
            np.ascontiguousarray(u).reshape(-1),
            self.domain_bits,
            self.roots,
            self.cw,
            self.vcw,
            self.leaf,
            self.tweak,
        )
        return bits.astype(np.uint64).reshape(u.shape)
