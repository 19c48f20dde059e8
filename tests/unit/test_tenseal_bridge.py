"""Keys of our own making, in SEAL: it encrypts, evaluates and decrypts with them, and we read what it writes.

The joint keys are sums of three ternary shares, made with NumPy in `tests/support/rlwe.py`; their sum lies
open there and nowhere else. Bounds are what the formulas' noise exceeds in one run of a million, plus what
float64 does to an encoding.
"""

from __future__ import annotations

import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from privinfer.backends.ckks import tenseal as bridge
from privinfer.backends.ckks.protobuf import ContextMessage, VectorMessage, _Reader
from privinfer.backends.ckks.seal import Format
from privinfer.backends.ckks.seal_header import HEADER, Version, read_header
from privinfer.backends.ckks.tenseal import SCALE, PublicContext
from privinfer.errors import ConfigError, InputError, IntegrityError
from tests.support.rlwe import SIGMA, Keys, Twin, family

N, LEVELS, PARTIES = 8192, 3, 3  # log2 QP = 200, of 214 for 128 bits
SLOTS = N // 2
PRIMES = family(N, LEVELS)
RNG = np.random.default_rng(11)
STEPS = [1, 2, 4, 8, -1, -2, -4, -8]
# SEAL's float64 transforms: log2 N rounds of half an ulp on slots of about 1, doubled for the way back
ENCODING = 2 * math.log2(N) * 2.0**-53 * 8
VARIANCE = 2 / 3 * PARTIES  # of a coefficient of the joint key
# An error times the key is, in each slot, a product of two complex Gaussians: |it| exceeds t deviations with
# probability 2 t K1(2 t), for t = 12.6 below 2^-32; 12.6 sqrt(2) of the real part's; 2^-20 for 4096 slots.
TAIL = 18.0


def bound(std: float, scale: float = SCALE) -> float:
    """What no slot exceeds where each coefficient has `std`: the real part of a slot has std sqrt(N / 2)."""
    return TAIL * std * math.sqrt(N / 2) / scale + ENCODING


# SEAL encrypts over all primes and divides by P: what is left is the rounding of c0 and of c1 s.
FRESH = math.sqrt((1 + N * VARIANCE) / 12)
# Digits are not centred: uniform in [0, q), mean square q^2 / 3, and q / P is 1. Rounding as above.
SWITCHED = math.sqrt(LEVELS * N / 3 * PARTIES) * SIGMA + FRESH
# The mean q / 2 of a digit's coefficients adds up in the slots next to X = 1, where sum X^k is 2 N / pi.
SWITCHED_PEAK = LEVELS * TAIL * SIGMA * math.sqrt(PARTIES * N) * (N / math.pi) / SCALE


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys(N, PRIMES, PARTIES)


@pytest.fixture(scope="module")
def form() -> Format:
    return bridge.form_of(N, PRIMES)


@pytest.fixture(scope="module")
def context(keys: Keys, form: Format) -> PublicContext:
    return PublicContext(
        form,
        public_key=keys.public(),
        relinearisation_key=keys.relinearisation(),
        galois_keys=keys.galois(STEPS),
    )


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return RNG.uniform(-1, 1, SLOTS)


# -- the library -----------------------------------------------------------------------------------


def test_version_is_read_from_the_library() -> None:
    found = bridge.version()
    assert isinstance(found, Version)
    assert found.major == 4


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise bridge.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bridge.importlib.metadata, "version", absent)
    with pytest.raises(ConfigError, match="tenseal is not installed") as caught:
        bridge.check_installed()
    assert caught.value.hint == "pip install privinfer[ckks]"


def test_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge.load.cache_clear()
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match="tenseal cannot be imported"):
        bridge.load()


def test_of_another_version(form: Format) -> None:
    old = Format(form.n, form.primes, Version(form.version.major, form.version.minor - 1))
    with pytest.raises(ConfigError, match=rf"objects of SEAL {old.version}, and TenSEAL here brings"):
        PublicContext(old)
    with pytest.raises(ConfigError, match=f"written by SEAL {old.version}"):
        form.parse_parameters(old.emit_parameters(), form.version)


# -- keys in, values out ---------------------------------------------------------------------------


def test_encrypt_and_decrypt(context: PublicContext, keys: Keys, x: np.ndarray) -> None:
    data, scale = context.encrypt(x)
    assert data.shape == (2, LEVELS, N)
    assert scale == SCALE
    found = bridge.decrypt(context.form, keys.secret, data, scale)
    assert np.abs(found - x).max() < bound(FRESH)


def test_short_vectors_are_padded(context: PublicContext, keys: Keys) -> None:
    data, scale = context.encrypt(np.array([1.0, -2.0]))
    found = bridge.decrypt(context.form, keys.secret, data, scale)
    assert np.abs(found[:3] - [1, -2, 0]).max() < 4 * bound(FRESH)


def test_without_a_share(context: PublicContext, keys: Keys, x: np.ndarray) -> None:
    """A key that lacks something ternary opens nothing."""
    data, scale = context.encrypt(x)
    share = keys.ring.ntt(RNG.integers(-1, 2, N))
    found = bridge.decrypt(context.form, keys.ring.add(keys.secret, keys.ring.neg(share)), data, scale)
    assert np.abs(found - x).max() > 1e6


def test_data_of_other_hands(context: PublicContext, keys: Keys) -> None:
    """Our own encryption of zero, with a message that SEAL did not encode: the constant polynomial."""
    r = keys.ring
    zero = keys.public()[:, :LEVELS]
    ones = np.full((LEVELS, N), np.uint64(1 << 40))
    zero[0] = r.add(np.concatenate([zero[0], zero[0][:1]]), np.concatenate([ones, ones[:1]]))[:LEVELS]
    found = bridge.decrypt(context.form, keys.secret, zero, float(1 << 40))
    assert np.abs(found - 1).max() < bound(SIGMA * math.sqrt(PARTIES), float(1 << 40))


def test_lower_levels(context: PublicContext, keys: Keys, x: np.ndarray) -> None:
    data, scale = context.encrypt(x)
    found = bridge.decrypt(context.form, keys.secret, np.ascontiguousarray(data[:, :2]), scale)
    assert np.abs(found - x).max() < bound(FRESH)


# -- evaluation in SEAL ----------------------------------------------------------------------------


def test_multiply_relinearise_rescale(context: PublicContext, keys: Keys, x: np.ndarray) -> None:
    y = RNG.uniform(-1, 1, SLOTS)
    product = context.vector(*context.encrypt(x)) * context.vector(*context.encrypt(y))
    data, scale = context.read(product)
    assert data.shape == (2, LEVELS - 1, N)
    # TenSEAL calls the scale SCALE again after a rescaling; it is SCALE^2 / q
    assert scale == SCALE
    found = bridge.decrypt(context.form, keys.secret, data, scale**2 / PRIMES[LEVELS - 1])
    # two fresh errors, each times a number of at most 1; relinearisation precedes the rescaling and vanishes
    assert np.abs(found - x * y).max() < 3 * bound(FRESH)


def test_square_without_a_relinearisation_key(keys: Keys, form: Format, x: np.ndarray) -> None:
    context = PublicContext(form, public_key=keys.public())
    with pytest.raises(ValueError, match="Relinearization"):
        context.vector(*context.encrypt(x)).square()


def test_matmul(context: PublicContext, keys: Keys) -> None:
    """TenSEAL's own product with an 8 x 4 matrix: it rotates by 1 to 7, as sums of two of our keys' steps."""
    values, matrix = RNG.uniform(-1, 1, 8), RNG.uniform(-1, 1, (8, 4))
    data, scale = context.encrypt(np.tile(values, SLOTS // 8))
    product = context.vector(data, scale, size=8).matmul(matrix.tolist())
    found = bridge.decrypt(context.form, keys.secret, *context.read(product))
    # 8 terms, up to two switches each; and the scale that TenSEAL calls SCALE again
    worst = 8 * (bound(FRESH) + 2 * (bound(SWITCHED) + SWITCHED_PEAK)) + bound(FRESH)
    assert np.abs(found[:4] * PRIMES[LEVELS - 1] / SCALE - values @ matrix).max() < worst


@pytest.fixture(scope="module")
def sealapi(context: PublicContext, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SEAL below TenSEAL, which reads files: parameters and keys as we wrote them."""
    api = pytest.importorskip("tenseal.sealapi")
    folder = tmp_path_factory.mktemp("seal")

    class Api:
        parms = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)

        def write(self, blob: bytes) -> str:
            file = folder / "object"
            file.write_bytes(blob)
            return str(file)

        def load(self, kind: Any, blob: bytes) -> Any:
            loaded = kind()
            loaded.load(self.context, self.write(blob))
            return loaded

    made = Api()
    made.parms.load(made.write(context.form.emit_parameters()))
    made.context = api.SEALContext(made.parms, True, api.SEC_LEVEL_TYPE.TC128)
    made.api = api
    return made


@pytest.mark.parametrize("step", [1, -4])
def test_rotate(
    sealapi: Any, context: PublicContext, keys: Keys, x: np.ndarray, step: int, tmp_path: Path
) -> None:
    api, form = sealapi.api, context.form
    galois = sealapi.load(api.GaloisKeys, form.emit_galois_keys(keys.galois([step])))
    ciphertext = sealapi.load(api.Ciphertext, form.emit_ciphertext(*context.encrypt(x)))
    api.Evaluator(sealapi.context).rotate_vector_inplace(ciphertext, step, galois)
    file = tmp_path / "rotated"
    ciphertext.save(str(file))
    plain = bridge.inflate(file.read_bytes(), form.ciphertext_bytes(2, LEVELS), bridge.zstd())
    found = bridge.decrypt(form, keys.secret, *form.parse_ciphertext(plain))
    assert np.abs(found - np.roll(x, -step)).max() < bound(FRESH) + bound(SWITCHED) + SWITCHED_PEAK


# -- contexts --------------------------------------------------------------------------------------


def test_a_context_of_public_data_is_public(context: PublicContext, x: np.ndarray) -> None:
    assert context.handle.is_public()
    assert not context.handle.has_secret_key()
    with pytest.raises(ValueError, match=r"secret|decryption"):
        context.vector(*context.encrypt(x)).decrypt()


def test_a_context_that_decrypts_is_noticed(
    monkeypatch: pytest.MonkeyPatch, form: Format, keys: Keys
) -> None:
    """One made public in place keeps its decryptor; ours is read back, and looked at."""
    secret = form.emit_secret_key(keys.secret)
    real = bridge._context

    def private(message: bytes, threads: int) -> Any:
        made = real(ContextMessage.parse(message).emit(secret), threads)
        made.make_context_public()
        assert made.is_public()
        return made

    monkeypatch.setattr(bridge, "_context", private)
    with pytest.raises(IntegrityError, match="can decrypt"):
        PublicContext(form)


def test_a_context_comes_back(context: PublicContext, keys: Keys) -> None:
    """What the library serialises (zstd inside) is read to the same arrays."""
    found = bridge.read_context(context.handle.serialize())
    assert found.form == context.form
    assert found.scale == SCALE
    assert sorted(found.galois_keys) == sorted({pow(3, s, 2 * N) for s in STEPS})
    assert found.public_key is not None
    assert found.relinearisation_key is not None
    message = ContextMessage(
        context.form.emit_parameters(),
        context.form.emit_public_key(found.public_key),
        7,
        found.scale,
        context.form.emit_relinearisation_key(found.relinearisation_key),
        context.form.emit_galois_keys(found.galois_keys),
    )
    again = bridge.read_context(message.emit())
    assert np.array_equal(again.public_key, found.public_key)
    assert np.array_equal(again.relinearisation_key, found.relinearisation_key)
    assert all(np.array_equal(again.galois_keys[e], k) for e, k in found.galois_keys.items())


def test_keys_of_seal_are_keys_of_ours(keys: Keys) -> None:
    """The other direction: SEAL makes a key; our transform finds it ternary, and its public key fits it."""
    ts = bridge.load()
    made = ts.context(ts.SCHEME_TYPE.CKKS, N, coeff_mod_bit_sizes=[50, 40, 50], n_threads=1)
    public = bridge.read_context(made.serialize(save_galois_keys=False, save_relin_keys=False))
    assert public.public_key is not None
    form = public.form
    whole = made.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    private = _fields(whole, {1: 2, 2: 2, 3: 2, 4: 0})[3]
    packed = _fields(private, {1: 2, 2: 0, 3: 0})[1]
    secret = bridge.inflate(packed, form.secret_key_bytes(), bridge.zstd())
    s = form.parse_secret_key(secret)
    ring = Twin(N, form.primes)
    b, a = public.public_key
    e = ring.add(b, ring.mul(a, s))
    for found, most in ((s, 1), (e, 21)):  # short: the same small integers under each prime
        integers = ring.intt(found)
        assert np.array_equal(integers, np.broadcast_to(integers[0], integers.shape))
        assert 0 < np.abs(integers).max() <= most


def _fields(blob: bytes, known: dict[int, int]) -> dict[int, Any]:
    """Fields of a message, secret ones too."""
    return dict(_Reader("test", None).fields(blob, known))


# -- hostile bytes from elsewhere, with the library at hand ----------------------------------------


def test_a_context_with_a_secret_is_refused(keys: Keys, form: Format) -> None:
    message = ContextMessage(form.emit_parameters()).emit(form.emit_secret_key(keys.secret))
    with pytest.raises(ConfigError, match="holds a secret key"):
        bridge.read_context(message, culprit="hospital")


def test_zstd_under_a_cap(context: PublicContext, x: np.ndarray) -> None:
    vector = context.vector(*context.encrypt(x))
    blob = bytes(VectorMessage.parse(vector.serialize(), SLOTS).ciphertexts[0])
    assert read_header(blob).compression == 2
    honest = context.form.ciphertext_bytes(2, LEVELS)
    assert len(bridge.inflate(blob, honest, bridge.zstd())) == honest
    for bad, limit in ((blob, honest - 1), (blob[:-5], honest), (blob[:16] + b"no zstd at all", honest)):
        again = HEADER.pack(0xA15E, 16, *bridge.version(), 2, 0, len(bad)) + bad[16:]
        with pytest.raises(IntegrityError, match="compressed and damaged, or larger"):
            bridge.inflate(again, limit, bridge.zstd())


def test_zstd_bomb() -> None:
    """A frame of 4 bytes for each 128 KiB: it inflates to a little more than itself, if at all."""
    frame = b"\x28\xb5\x2f\xfd\x00\x50"
    block = (1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    frame = frame + block * 4000 + (1 | 1 << 1 | 8 << 3).to_bytes(3, "little") + b"\0"
    blob = HEADER.pack(0xA15E, 16, *bridge.version(), 2, 0, 16 + len(frame)) + frame
    with pytest.raises(IntegrityError, match="compressed and damaged, or larger"):
        bridge.inflate(blob, 1 << 62, bridge.zstd())


def test_a_context_that_claims_the_largest_ring() -> None:
    """Sizes that follow from hostile parameters are not allocated before the bytes are there."""
    form = Format(65536, family(65536, 40), bridge.version())
    small = HEADER.pack(0xA15E, 16, *bridge.version(), 2, 0, 16 + 8) + bytes(8)
    message = ContextMessage(form.emit_parameters(), galois_keys=small).emit()
    with pytest.raises(IntegrityError, match="compressed and damaged"):
        bridge.read_context(message, elements=65536)


def test_zlib_vector(context: PublicContext, keys: Keys, x: np.ndarray) -> None:
    data, scale = context.encrypt(x)
    plain = context.form.emit_ciphertext(data, scale)
    packed = zlib.compress(plain[16:], 1)
    blob = HEADER.pack(0xA15E, 16, *bridge.version(), 1, 0, 16 + len(packed)) + packed
    message = VectorMessage((SLOTS,), (blob,), scale).emit()
    found = bridge.read_vector(context.form, message)
    assert np.array_equal(found[0][0], data)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros(SLOTS + 1), InputError),
        (np.zeros(0), InputError),
        (np.zeros((2, 2)), InputError),
        (np.array([np.nan]), InputError),
    ],
)
def test_what_is_not_encrypted(context: PublicContext, values: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        context.encrypt(values)


def test_encrypt_without_a_key(form: Format) -> None:
    with pytest.raises(ConfigError, match="no public key"):
        PublicContext(form).encrypt(np.zeros(1))


def test_parameters_that_seal_refuses(form: Format) -> None:
    """SEAL's own table of security, behind ours: 5 primes of 50 bits at N = 8192."""
    with pytest.raises(ConfigError):
        PublicContext(Format(N, family(N, 4), form.version), public_key=Keys(N, family(N, 4)).public())
