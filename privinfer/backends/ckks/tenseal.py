"""SEAL as TenSEAL brings it: contexts of our own primes, keys of our own making, values in and out.

Contexts are made from bytes that we wrote, of public data only, and read back by the library: one that was
made public in place would still decrypt. A secret key meets SEAL in :class:`SecretContext` alone, at its
owner. SEAL draws its own randomness for :meth:`PublicContext.encrypt` (BLAKE2Xb, seeded from the operating
system for each encryption).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks.protobuf import AUTOMATIC, ContextMessage, VectorMessage
from privinfer.backends.ckks.seal import U64, Format
from privinfer.backends.ckks.seal_header import Blob, Inflate, Version, inflate, read_header
from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.protocols.randomness import Secret

SCALE: Final = 2.0**50
HINT: Final = "pip install privinfer[ckks]"
_PROBE: Final = (2048, [27, 27])  # degree and bits of primes: the smallest context that TenSEAL makes


def check_installed() -> None:
    """Raise ConfigError with the command that helps, where TenSEAL is missing; imports nothing."""
    try:
        importlib.metadata.version("tenseal")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("tenseal is not installed", hint=HINT) from None


@functools.cache
def load() -> Any:
    """TenSEAL, imported at first use.

    Raises
    ------
    ConfigError
        It is not installed, or does not import.
    """
    check_installed()
    try:
        return importlib.import_module("tenseal")
    except ImportError as error:
        raise ConfigError(f"tenseal cannot be imported: {error}", hint=HINT) from error


@functools.cache
def version() -> Version:
    """SEAL's version, read from parameters that the library itself writes."""
    ts = load()
    probe = ts.context(ts.SCHEME_TYPE.CKKS, _PROBE[0], coeff_mod_bit_sizes=_PROBE[1], n_threads=1)
    message = ContextMessage.parse(probe.serialize(save_galois_keys=False, save_relin_keys=False))
    return read_header(message.parameters, "parameters").version


@functools.cache
def zstd() -> Inflate | None:
    """The zstd inside TenSEAL's library, with which SEAL compresses what it writes; None where hidden."""
    try:
        library = ctypes.CDLL(load()._ts_cpp.__file__)
        undo, failed = library.ZSTD_decompress, library.ZSTD_isError
    except (OSError, AttributeError):
        return None
    undo.restype, failed.restype = ctypes.c_size_t, ctypes.c_uint
    undo.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    failed.argtypes = [ctypes.c_size_t]
    return functools.partial(_undo, undo, failed)


def _undo(undo: Callable[..., int], failed: Callable[..., int], packed: memoryview, limit: int) -> bytes:
    out = ctypes.create_string_buffer(limit)
    written = undo(out, limit, bytes(packed), len(packed))
    if failed(written) or written > limit:
        raise IntegrityError("SEAL object is compressed and damaged, or larger than an honest one")
    return ctypes.string_at(out, written)


class PublicContext:
    """A SEAL context that encrypts and evaluates, and cannot decrypt.

    Parameters
    ----------
    form : Format
        Chain and version, see :func:`form_of`.
    public_key : ndarray of uint64 [2, K, N], optional
        (b, a), all K primes.
    relinearisation_key : ndarray of uint64 [D, 2, K, N], optional
        Of s^2.
    galois_keys : mapping of int to ndarray of uint64 [D, 2, K, N], optional
        By Galois element.
    scale : float
        With which TenSEAL encodes.
    threads : int
        Of TenSEAL's pool.

    Attributes
    ----------
    form : Format
    handle : tenseal.Context
        For TenSEAL's own operations.

    Raises
    ------
    ConfigError
        TenSEAL is missing, or refuses the parameters.
    IntegrityError
        A key has the wrong shape or an unreduced residue, or the library's context can decrypt.
    """

    def __init__(
        self,
        form: Format,
        *,
        public_key: U64 | None = None,
        relinearisation_key: U64 | None = None,
        galois_keys: Mapping[int, U64] | None = None,
        scale: float = SCALE,
        threads: int = 1,
    ) -> None:
        check_version(form)
        self.form = form
        message = ContextMessage(
            form.emit_parameters(),
            b"" if public_key is None else form.emit_public_key(public_key),
            AUTOMATIC,
            scale,
            b"" if relinearisation_key is None else form.emit_relinearisation_key(relinearisation_key),
            b"" if not galois_keys else form.emit_galois_keys(galois_keys),
        )
        self.handle = _context(message.emit(), threads)
        if not self.handle.is_public() or _decrypts(self.handle):
            raise IntegrityError("a context of public data can decrypt")

    def encrypt(self, values: npt.NDArray[np.float64]) -> tuple[U64, float]:
        """Encrypt real numbers under the public key, at the top level.

        Parameters
        ----------
        values : ndarray of float64 [m]
            At most N / 2; the slots behind them are zero.

        Returns
        -------
        data : ndarray of uint64 [2, K - 1, N]
        scale : float
        """
        slots = self.form.n // 2
        if values.ndim != 1 or not 1 <= len(values) <= slots or not np.isfinite(values).all():
            raise InputError(f"an array of shape {values.shape} is no finite vector of at most {slots}")
        if not self.handle.has_public_key():
            raise ConfigError("this context has no public key")
        padded = np.zeros(slots)
        padded[: len(values)] = values
        return self.read(load().ckks_vector(self.handle, padded.tolist()))

    def vector(self, data: U64, scale: float, size: int | None = None) -> Any:
        """A ciphertext as TenSEAL's CKKSVector of its first `size` slots (default: all)."""
        message = VectorMessage(
            (size or self.form.n // 2,), (self.form.emit_ciphertext(data, scale),), float(scale)
        )
        return load().ckks_vector_from(self.handle, message.emit())

    def read(self, vector: Any) -> tuple[U64, float]:
        """Data and scale of a CKKSVector of one ciphertext.

        After a rescaling TenSEAL calls the scale what the context has, and it is off by q / scale: who lets
        TenSEAL multiply keeps the exact scale.
        """
        found = read_vector(self.form, vector.serialize())
        if len(found) != 1:
            raise IntegrityError(f"a vector of {len(found)} ciphertexts, not one")
        return found[0]


def form_of(n: int, primes: tuple[int, ...]) -> Format:
    """Format of a chain (data primes, then P) in the version that is installed."""
    return Format(n, primes, version())


def check_version(form: Format) -> None:
    """Raise ConfigError where `form` is not of the version that is installed."""
    if form.version != version():
        raise ConfigError(
            f"objects of SEAL {form.version}, and TenSEAL here brings SEAL {version()}", hint=HINT
        )


class SecretContext(Secret):
    """A SEAL context that decrypts, at a key's owner (or in a test: no joint key exists anywhere).

    Parameters
    ----------
    form : Format
        Chain and version.
    secret_key : ndarray of uint64 [K, N]
        SECRET: s, all K primes.
    """

    __slots__ = ("_handle", "form")

    def __init__(self, form: Format, secret_key: U64) -> None:
        check_version(form)
        self.form = form
        message = ContextMessage(form.emit_parameters(), scale=SCALE)
        self._handle = _context(message.emit(form.emit_secret_key(secret_key)), 1)

    def decrypt(self, data: U64, scale: float) -> npt.NDArray[np.float64]:
        """Real parts of the slots.

        Parameters
        ----------
        data : ndarray of uint64 [size, l, N]
            Ciphertext.
        scale : float
            Of the ciphertext.

        Returns
        -------
        ndarray of float64 [N / 2]
        """
        message = VectorMessage((self.form.n // 2,), (self.form.emit_ciphertext(data, scale),), float(scale))
        return np.array(load().ckks_vector_from(self._handle, message.emit()).decrypt())


def decrypt(form: Format, secret_key: U64, data: U64, scale: float) -> npt.NDArray[np.float64]:
    """Decrypt one ciphertext; see :class:`SecretContext`."""
    return SecretContext(form, secret_key).decrypt(data, scale)


@dataclass(frozen=True, slots=True)
class ReceivedContext:
    """What a context from elsewhere holds, checked; None or empty where it has no such key."""

    form: Format
    scale: float
    public_key: U64 | None
    relinearisation_key: U64 | None
    galois_keys: dict[int, U64]


def read_context(blob: Blob, elements: int = 64, culprit: str | None = None) -> ReceivedContext:
    """Read a TenSEAL context from elsewhere; SEAL does not see it.

    Parameters
    ----------
    blob : bytes
        What ``Context.serialize`` gave, without the secret key.
    elements : int
        How many Galois elements are expected at most: what decompression may take.
    culprit : str, optional
        The party it came from.

    Raises
    ------
    ConfigError
        It holds a secret key, or is of another scheme or SEAL.
    IntegrityError
        Malformed.
    """
    message = ContextMessage.parse(blob, culprit)
    form = Format.parse_parameters(_plain(message.parameters, 1 << 12, culprit), version(), culprit)
    K = len(form.primes)
    public: U64 | None = None
    relinearisation: U64 | None = None
    galois: dict[int, U64] = {}
    if len(message.public_key):
        limit = form.ciphertext_bytes(2, K)
        public = form.parse_public_key(_plain(message.public_key, limit, culprit), culprit)
    if len(message.relinearisation_key):
        limit = form.keys_bytes(1, 1)
        plain = _plain(message.relinearisation_key, limit, culprit)
        relinearisation = form.parse_relinearisation_key(plain, culprit)
    if len(message.galois_keys):
        limit = form.keys_bytes(form.n, min(elements, form.n))
        galois = form.parse_galois_keys(_plain(message.galois_keys, limit, culprit), culprit)
    return ReceivedContext(form, message.scale, public, relinearisation, galois)


def read_vector(form: Format, blob: Blob, culprit: str | None = None) -> list[tuple[U64, float]]:
    """Ciphertexts and scales of a TenSEAL CKKSVector from anywhere; errors as :func:`read_context`."""
    message = VectorMessage.parse(blob, form.n // 2, culprit)
    limit = form.ciphertext_bytes(3, form.levels)
    return [form.parse_ciphertext(_plain(c, limit, culprit), culprit) for c in message.ciphertexts]


def _plain(blob: Blob, limit: int, culprit: str | None) -> Blob:
    return inflate(blob, limit, zstd(), culprit=culprit)


def _context(message: bytes, threads: int) -> Any:
    try:
        return load().context_from(message, n_threads=threads)
    except (ValueError, RuntimeError) as error:  # std::invalid_argument and std::logic_error
        raise ConfigError(f"SEAL refuses these parameters or keys: {error}") from None


def _decrypts(handle: Any) -> bool:
    try:
        handle.decryptor()
    except ValueError:
        return False
    return True
