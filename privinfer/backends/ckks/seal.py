"""SEAL's objects as NumPy arrays: parameters, ciphertexts, keys. Every byte is checked before SEAL sees one.

Little endian, uncompressed, behind the header of `seal_header.py`. Limbs are in NTT form (minimal primitive
2N-th root, bit-reversed order), residues in [0, q). A ciphertext or key names its modulus chain by a
``parms_id``, BLAKE2b-256 of the words [scheme, N, q_0 .. q_{l-1}, 0].

What comes from outside has one size that its few leading fields decide; anything else is refused before a
coefficient is looked at, and coefficients are compared with their moduli where they lie: a hostile object
costs no memory beyond its own. Malformed bytes are an IntegrityError. What is well formed and was made for
other parameters, by another SEAL, or compressed, is a ConfigError.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks.seal_header import HEADER, Blob, Version, check_inner, check_outer, make_header
from privinfer.errors import ConfigError, IntegrityError

U64 = npt.NDArray[np.uint64]

CKKS: Final = 2
MIN_N, MAX_N = 1024, 65536
MAX_PRIMES: Final = 64
MAX_PRIME_BITS: Final = 60  # SEAL's own bound of a modulus
MAX_POLYNOMIALS: Final = 3  # a product before it is relinearised

_PARAMETERS = struct.Struct("<BQQ")
_WORD = struct.Struct("<Q")
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")
_PLAINTEXT = struct.Struct("<32sQd")
_KEYS = struct.Struct("<32sQ")
_INNER = HEADER.size + _WORD.size  # header and count of an array
_CIPHERTEXT_DATA = HEADER.size + _CIPHERTEXT.size + _INNER  # 113
_SECRET_DATA = HEADER.size + _PLAINTEXT.size + _INNER  # 88

# Miller and Rabin's test is exact below 3.3e24 with these bases (Sorenson and Webster, 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


@dataclass(frozen=True, slots=True)
class Format:
    """How SEAL writes objects of one modulus chain.

    Attributes
    ----------
    n : int
        Degree, a power of two.
    primes : tuple of int
        Data primes q_0 .. q_{K-2}, then the special prime P. A ciphertext has the first l of the data primes,
        a key has all K.
    version : Version
        Of the SEAL that reads and writes; `privinfer.backends.ckks.tenseal.version` asks the library.
    """

    n: int
    primes: tuple[int, ...]
    version: Version

    def __post_init__(self) -> None:
        fault = _fault(self.n, self.primes)
        if fault:
            raise ConfigError(f"CKKS parameters: {fault}")

    @property
    def levels(self) -> int:
        """Data limbs of a fresh ciphertext."""
        return max(1, len(self.primes) - 1)

    def parms_id(self, limbs: int) -> bytes:
        """SEAL's name of the chain of the first `limbs` primes, 32 bytes."""
        words = (CKKS, self.n, *self.primes[:limbs], 0)
        return hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=32).digest()

    def ciphertext_bytes(self, size: int, limbs: int) -> int:
        """Bytes of a ciphertext; of a public key with size 2 and all K limbs."""
        return _CIPHERTEXT_DATA + 8 * size * limbs * self.n

    def secret_key_bytes(self) -> int:
        """Bytes of a SecretKey."""
        return _SECRET_DATA + 8 * len(self.primes) * self.n

    def keys_bytes(self, rows: int, held: int) -> int:
        """Bytes of RelinKeys (rows 1, held 1) or GaloisKeys (rows N, held the number of elements)."""
        K = len(self.primes)
        digits = held * (K - 1) * self.ciphertext_bytes(2, K)
        return HEADER.size + _KEYS.size + _WORD.size * rows + digits

    # -- parameters ------------------------------------------------------------------------------

    def emit_parameters(self) -> bytes:
        """EncryptionParameters."""
        moduli = b"".join(
            make_header(self.version, _INNER) + _WORD.pack(value) for value in (*self.primes, 0)
        )  # the last is the plaintext modulus, which CKKS has not
        size = HEADER.size + _PARAMETERS.size + len(moduli)
        return make_header(self.version, size) + _PARAMETERS.pack(CKKS, self.n, len(self.primes)) + moduli

    @classmethod
    def parse_parameters(cls, blob: Blob, version: Version, culprit: str | None = None) -> Format:
        """Read EncryptionParameters.

        Raises
        ------
        ConfigError
            Another scheme, version or compression, or moduli that CKKS cannot use.
        IntegrityError
            Not what SEAL would write.
        """
        what = "parameters"
        check_outer(blob, version, what, culprit)
        if len(blob) < HEADER.size + _PARAMETERS.size:
            raise IntegrityError(f"SEAL {what} are cut off", culprit=culprit)
        scheme, n, count = _PARAMETERS.unpack_from(blob, HEADER.size)
        if scheme != CKKS:
            raise ConfigError("SEAL parameters are not of CKKS", culprit=culprit)
        start = HEADER.size + _PARAMETERS.size
        if not 1 <= count <= MAX_PRIMES or len(blob) != start + (count + 1) * _INNER:
            raise IntegrityError(f"SEAL {what} have {count} moduli in {len(blob)} bytes", culprit=culprit)
        values = []
        for offset in range(start, len(blob), _INNER):
            check_inner(blob, offset, version, _INNER, what, culprit)
            values.append(int(_WORD.unpack_from(blob, offset + HEADER.size)[0]))
        *primes, plain = values
        if plain:
            raise IntegrityError(f"SEAL {what} have a plaintext modulus, which CKKS has not", culprit=culprit)
        fault = _fault(n, primes)
        if fault:
            raise ConfigError(f"SEAL {what}: {fault}", culprit=culprit)
        return cls(n, tuple(primes), version)

    # -- ciphertexts and public keys -------------------------------------------------------------

    def emit_ciphertext(self, data: U64, scale: float) -> bytes:
        """Ciphertext.

        Parameters
        ----------
        data : ndarray of uint64 [size, l, N]
            2 or 3 polynomials; l data limbs.
        scale : float
            What a slot was multiplied by.
        """
        limbs = data.shape[1] if data.ndim == 3 else 0
        if data.ndim != 3 or not 2 <= len(data) <= MAX_POLYNOMIALS or not 1 <= limbs <= self.levels:
            raise IntegrityError(f"an array of shape {data.shape} is no ciphertext")
        self._check_scale(scale, limbs, "ciphertext", None)
        return b"".join(self._ciphertext(data, scale, "ciphertext"))

    def parse_ciphertext(self, blob: Blob, culprit: str | None = None) -> tuple[U64, float]:
        """Read a ciphertext.

        Returns
        -------
        data : ndarray of uint64 [size, l, N]
            2 or 3 polynomials, a copy.
        scale : float
            Positive, and below the product of the moduli.

        Raises
        ------
        ConfigError
            Of other parameters, another version, or compressed.
        IntegrityError
            Anything that SEAL would not write.
        """
        return self._parse_ciphertext(blob, "ciphertext", None, culprit)

    def emit_public_key(self, key: U64) -> bytes:
        """PublicKey from (b, a), uint64 [2, K, N]."""
        self._check_shape(key, (2, len(self.primes), self.n), "public key")
        return b"".join(self._ciphertext(key, 1.0, "public key"))

    def parse_public_key(self, blob: Blob, culprit: str | None = None) -> U64:
        """Read a public key, uint64 [2, K, N]; errors as :meth:`parse_ciphertext`."""
        return self._parse_ciphertext(blob, "public key", len(self.primes), culprit)[0]

    def _ciphertext(self, data: U64, scale: float, what: str) -> list[bytes]:
        size, limbs, n = data.shape
        self._check_shape(data, (size, limbs, self.n), what)
        self._check_residues(data, what, None)
        fields = _CIPHERTEXT.pack(self.parms_id(limbs), 1, size, n, limbs, scale, 1)
        return [
            make_header(self.version, _CIPHERTEXT_DATA + data.nbytes),
            fields,
            make_header(self.version, _INNER + data.nbytes),
            _WORD.pack(data.size),
            _little(data),
        ]

    def _parse_ciphertext(
        self, blob: Blob, what: str, limbs: int | None, culprit: str | None
    ) -> tuple[U64, float]:
        """`limbs` None: any number of data limbs and polynomials; else that many, two, and scale 1."""
        check_outer(blob, self.version, what, culprit)
        if len(blob) < _CIPHERTEXT_DATA:
            raise IntegrityError(f"SEAL {what} is cut off", culprit=culprit)
        parms_id, ntt, size, n, found, scale, correction = _CIPHERTEXT.unpack_from(blob, HEADER.size)
        if n != self.n:
            raise ConfigError(f"SEAL {what} has degree {n}, not {self.n}", culprit=culprit)
        highest = self.levels if limbs is None else limbs
        if not (limbs or 1) <= found <= highest:
            raise IntegrityError(f"SEAL {what} has {found} limbs, at most {highest} fit", culprit=culprit)
        self._check_parms(parms_id, found, what, culprit)
        if not 2 <= size <= (MAX_POLYNOMIALS if limbs is None else 2):
            raise IntegrityError(f"SEAL {what} has {size} polynomials", culprit=culprit)
        if ntt != 1 or correction != 1:
            raise IntegrityError(f"SEAL {what} is not in NTT form", culprit=culprit)
        if limbs is None:
            self._check_scale(scale, found, what, culprit)
        elif scale != 1.0:
            raise IntegrityError(f"SEAL {what} has a scale", culprit=culprit)
        shape = (size, found, n)
        return self._parse_array(blob, _CIPHERTEXT_DATA, shape, what, culprit), float(scale)

    # -- secret keys -----------------------------------------------------------------------------

    def emit_secret_key(self, key: U64) -> bytes:
        """SECRET bytes: SecretKey from s, uint64 [K, N]."""
        what = "secret key"
        self._check_shape(key, (len(self.primes), self.n), what)
        self._check_residues(key, what, None)
        return b"".join(
            [
                make_header(self.version, _SECRET_DATA + key.nbytes),
                _PLAINTEXT.pack(self.parms_id(len(self.primes)), key.size, 1.0),
                make_header(self.version, _INNER + key.nbytes),
                _WORD.pack(key.size),
                _little(key),
            ]
        )

    def parse_secret_key(self, blob: Blob) -> U64:
        """SECRET array: s of a SecretKey, uint64 [K, N]; errors as :meth:`parse_ciphertext`."""
        what = "secret key"
        check_outer(blob, self.version, what, None)
        if len(blob) < _SECRET_DATA:
            raise IntegrityError(f"SEAL {what} is cut off")
        parms_id, count, scale = _PLAINTEXT.unpack_from(blob, HEADER.size)
        self._check_parms(parms_id, len(self.primes), what, None)
        if count != len(self.primes) * self.n or scale != 1.0:
            raise IntegrityError(f"SEAL {what} has {count} coefficients, not {len(self.primes) * self.n}")
        return self._parse_array(blob, _SECRET_DATA, (len(self.primes), self.n), what, None)

    # -- switching keys --------------------------------------------------------------------------

    def emit_relinearisation_key(self, key: U64) -> bytes:
        """RelinKeys (of s^2 alone) from a switching key, uint64 [D, 2, K, N]."""
        return self._emit_keys([key], "relinearisation key")

    def parse_relinearisation_key(self, blob: Blob, culprit: str | None = None) -> U64:
        """Read RelinKeys of s^2 alone, uint64 [D, 2, K, N]; errors as :meth:`parse_ciphertext`."""
        return self._parse_keys(blob, 1, "relinearisation key", culprit)[0]

    def emit_galois_keys(self, keys: Mapping[int, U64]) -> bytes:
        """GaloisKeys from {element: switching key}, elements odd and below 2 N."""
        for element in keys:
            if not (element % 2 and 1 <= element < 2 * self.n):
                raise IntegrityError(f"{element} is no Galois element of degree {self.n}")
        rows = [keys.get(2 * index + 1) for index in range(self.n)]
        return self._emit_keys(rows, "Galois keys")

    def parse_galois_keys(self, blob: Blob, culprit: str | None = None) -> dict[int, U64]:
        """Read GaloisKeys as {element: uint64 [D, 2, K, N]}; errors as :meth:`parse_ciphertext`."""
        found = self._parse_keys(blob, self.n, "Galois keys", culprit)
        return {2 * index + 1: key for index, key in found.items()}

    def _emit_keys(self, rows: Sequence[U64 | None], what: str) -> bytes:
        K = len(self.primes)
        if K < 2:
            raise ConfigError("one prime alone has no switching keys")
        parts = [_KEYS.pack(self.parms_id(K), len(rows))]
        for key in rows:
            if key is None:
                parts.append(_WORD.pack(0))
                continue
            self._check_shape(key, (K - 1, 2, K, self.n), what)
            parts.append(_WORD.pack(K - 1))
            for digit in key:
                parts += self._ciphertext(digit, 1.0, what)
        size = HEADER.size + sum(map(len, parts))
        return b"".join([make_header(self.version, size), *parts])

    def _parse_keys(self, blob: Blob, dim1: int, what: str, culprit: str | None) -> dict[int, U64]:
        K, D = len(self.primes), len(self.primes) - 1
        check_outer(blob, self.version, what, culprit)
        start = HEADER.size + _KEYS.size
        if len(blob) < start + dim1 * _WORD.size:
            raise IntegrityError(f"SEAL {what}: cut off", culprit=culprit)
        parms_id, found = _KEYS.unpack_from(blob, HEADER.size)
        self._check_parms(parms_id, K, what, culprit)
        if found != dim1 or not D:
            raise IntegrityError(f"SEAL {what}: {found} rows, not {dim1}", culprit=culprit)
        view, one = memoryview(blob), _CIPHERTEXT_DATA + 2 * K * self.n * 8
        keys: dict[int, U64] = {}
        offset = start
        for index in range(dim1):
            if len(blob) < offset + _WORD.size:
                raise IntegrityError(f"SEAL {what}: cut off", culprit=culprit)
            (digits,) = _WORD.unpack_from(blob, offset)
            offset += _WORD.size
            if digits == 0 and dim1 > 1:
                continue
            if digits != D or len(blob) - offset < D * one:
                raise IntegrityError(f"SEAL {what}: {digits} digits, not {D}, or cut off", culprit=culprit)
            key = np.empty((D, 2, K, self.n), np.uint64)
            for j in range(D):
                key[j] = self._parse_ciphertext(view[offset : offset + one], what, K, culprit)[0]
                offset += one
            keys[index] = key
        if offset != len(blob):
            raise IntegrityError(f"SEAL {what}: {len(blob) - offset} bytes too many", culprit=culprit)
        return keys

    # -- checks ----------------------------------------------------------------------------------

    def _check_parms(self, parms_id: bytes, limbs: int, what: str, culprit: str | None) -> None:
        if parms_id != self.parms_id(limbs):
            raise ConfigError(
                f"SEAL {what}: made for other parameters than N = {self.n} and these {limbs} primes",
                culprit=culprit,
            )

    def _check_scale(self, scale: float, limbs: int, what: str, culprit: str | None) -> None:
        bits = sum(math.log2(q) for q in self.primes[:limbs])
        if not math.isfinite(scale) or scale < 1 or math.log2(scale) >= bits:
            raise IntegrityError(f"SEAL {what}: its scale does not fit {limbs} limbs", culprit=culprit)

    def _check_shape(self, data: U64, shape: tuple[int, ...], what: str) -> None:
        if data.dtype != np.uint64 or data.shape != shape:
            raise IntegrityError(f"{what}: an array {data.dtype} {data.shape}, not uint64 {shape}")

    def _check_residues(self, data: U64, what: str, culprit: str | None) -> None:
        """`data` [..., l, N]; looks at one limb at a time, so that next to nothing is allocated."""
        for limb in range(data.shape[-2]):
            if int(data[..., limb, :].max()) >= self.primes[limb]:
                raise IntegrityError(f"{what}: limb {limb} is not reduced by its modulus", culprit=culprit)

    def _parse_array(
        self, blob: Blob, start: int, shape: tuple[int, ...], what: str, culprit: str | None
    ) -> U64:
        count = math.prod(shape)
        if len(blob) != start + 8 * count:
            seeded = len(shape) == 3 and shape[0] == 2 and len(blob) < start + 8 * count
            raise IntegrityError(
                f"SEAL {what}: {len(blob)} bytes, not {start + 8 * count}",
                culprit=culprit,
                hint="objects that hold a seed instead of the second polynomial are not read"
                if seeded
                else None,
            )
        check_inner(blob, start - _INNER, self.version, _INNER + 8 * count, what, culprit)
        if _WORD.unpack_from(blob, start - _WORD.size)[0] != count:
            raise IntegrityError(f"SEAL {what}: its count of coefficients is wrong", culprit=culprit)
        data = np.frombuffer(blob, dtype="<u8", count=count, offset=start).reshape(shape)
        self._check_residues(data, f"SEAL {what}", culprit)
        return np.array(data, dtype=np.uint64, order="C")


def _little(data: U64) -> bytes:
    return np.ascontiguousarray(data).astype("<u8", copy=False).tobytes()


def _fault(n: int, primes: Sequence[int]) -> str | None:
    """What is wrong with a modulus chain, or None."""
    if not MIN_N <= n <= MAX_N or n & (n - 1):
        return f"degree {n} is no power of two in {MIN_N}..{MAX_N}"
    if not 1 <= len(primes) <= MAX_PRIMES:
        return f"{len(primes)} primes are not 1..{MAX_PRIMES}"
    if len(set(primes)) != len(primes):
        return "a prime occurs twice"
    for q in primes:
        if q.bit_length() > MAX_PRIME_BITS or q % (2 * n) != 1 or not _is_prime(q):
            return f"{q} is no prime = 1 mod {2 * n} below 2^{MAX_PRIME_BITS}"
    return None


def _is_prime(q: int) -> bool:
    if q < 2:
        return False
    for p in _WITNESSES:
        if q % p == 0:
            return q == p
    shift = ((q - 1) & (1 - q)).bit_length() - 1
    odd = (q - 1) >> shift
    for witness in _WITNESSES:
        x = pow(witness, odd, q)
        if x in (1, q - 1):
            continue
        for _ in range(shift - 1):
            x = x * x % q
            if x == q - 1:
                break
        else:
            return False
    return True
