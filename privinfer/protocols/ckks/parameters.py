"""Public parameters: the ring, the primes, the security table.

There is one family of primes for each ring degree N: all primes = 1 mod 2N below 2**50, descending. The
largest is the special prime P, the next is q_0, and so on. Two sessions of one N therefore agree on a
prefix, and a fragment encrypted today fits a session with other levels next month. All primes lie within a
part in 2**20 of the scale 2**50.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cbor2

from privinfer.errors import ConfigError
from privinfer.protocols.ckks.ring import Ring

PRIME_BITS: Final = 50
SCALE: Final = float(1 << PRIME_BITS)
SMALLEST_RING: Final = 1024
LARGEST_RING: Final = 65536

# Largest log2(Q P) for 128 bits, classical, ternary secret: Security Guidelines for Implementing Homomorphic
# Encryption (eprint 2024/463), table 5.2. SEAL's own table allows 4 to 13 bits more.
SECURITY: Final = {4096: 106, 8192: 214, 16384: 430, 32768: 868, 65536: 1747}

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # deterministic below 3.3e24


def is_prime(number: int) -> bool:
    """Miller-Rabin with witnesses that decide every number below 2**64; for public numbers."""
    if number < 2:
        return False
    for p in _WITNESSES:
        if number % p == 0:
            return number == p
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for a in _WITNESSES:
        x = pow(a, odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


@lru_cache(maxsize=64)
def family(n: int, count: int) -> tuple[int, ...]:
    """The `count` largest primes = 1 mod 2n below 2**50, descending."""
    found: list[int] = []
    candidate = (1 << PRIME_BITS) - 2 * n + 1
    while len(found) < count:
        if is_prime(candidate):
            found.append(candidate)
        candidate -= 2 * n
    return tuple(found)


@lru_cache(maxsize=8)
def _ring(n: int, primes: tuple[int, ...]) -> Ring:
    return Ring(n, primes)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Ring degree and levels; everything else follows.

    Parameters
    ----------
    n : int
        Ring degree N, a power of two from 1024 to 65536.
    levels : int
        Number of data limbs; there is one special prime beside them.
    insecure : bool
        Asked for by name: skip the check of security, for tests on small rings. The digest differs, so a
        session with honest parameters never takes these.

    Raises
    ------
    ConfigError
        Below 128 bits of security, or no such ring.
    """

    n: int
    levels: int
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.n not in (1 << k for k in range(10, 17)):
            raise ConfigError(f"ring degree {self.n} is not a power of two from 1024 to 65536")
        if not 1 <= self.levels <= 64:
            raise ConfigError(f"{self.levels} levels are not between 1 and 64")
        if not self.insecure:
            self.check_security()

    @property
    def primes(self) -> tuple[int, ...]:
        """q_0, .., q_{levels-1}, P."""
        special, *data = family(self.n, self.levels + 1)
        return (*data, special)

    @property
    def special(self) -> int:
        """P."""
        return family(self.n, 1)[0]

    @property
    def limbs(self) -> int:
        """K: limbs at key level."""
        return self.levels + 1

    @property
    def digits(self) -> int:
        """D: digits of a switching key."""
        return self.levels

    @property
    def slots(self) -> int:
        """N / 2."""
        return self.n // 2

    @property
    def log_n(self) -> int:
        """log2 N."""
        return self.n.bit_length() - 1

    @property
    def full(self) -> tuple[int, ...]:
        """Basis of key level: all primes."""
        return tuple(range(self.limbs))

    def data(self, level: int) -> tuple[int, ...]:
        """Basis of a ciphertext of `level` limbs."""
        if not 1 <= level <= self.levels:
            raise ConfigError(f"level {level} is not between 1 and {self.levels}")
        return tuple(range(level))

    def extended(self, level: int) -> tuple[int, ...]:
        """Basis of `level` data limbs and P."""
        return (*self.data(level), self.limbs - 1)

    def modulus(self, level: int) -> int:
        """Q_l = q_0 .. q_{l-1}."""
        return math.prod(self.primes[i] for i in self.data(level))

    @property
    def log2_qp(self) -> float:
        """log2 of all primes' product, which security depends on."""
        return math.log2(math.prod(self.primes))

    @property
    def ring(self) -> Ring:
        """The kernels' tables, made once for all equal parameters."""
        return _ring(self.n, self.primes)

    def digest(self) -> bytes:
        """SHA-256 of what the parties must agree on."""
        return hashlib.sha256(
            cbor2.dumps(["privinfer/ckks/1", self.n, list(self.primes), self.insecure], canonical=True)
        ).digest()

    def check_security(self) -> None:
        """Refuse less than 128 bits, also where the constructor was told not to look.

        Raises
        ------
        ConfigError
            Names the limit.
        """
        limit = SECURITY.get(self.n, 0)
        if self.log2_qp > limit:
            raise ConfigError(
                f"N = {self.n} with {self.levels} levels has log2(QP) = {self.log2_qp:.1f}; for 128 bits of"
                f" security it may have {limit} at most",
                hint="a larger ring, or fewer levels and more refreshes",
            )


def most_levels(n: int) -> int:
    """Data limbs that a ring of degree n can have at 128 bits; 0 where it can have none."""
    return max(0, SECURITY.get(n, 0) // PRIME_BITS - 1)
