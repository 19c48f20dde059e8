from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from Crypto.Cipher import AES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privinfer import _kernels
from tests import twins


@pytest.fixture(params=_kernels.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.current_path()
    _kernels.use_path(request.param)
    yield request.param
    _kernels.use_path(before)


# NIST known answers for AES-128 (AESAVS, files ECBKeySbox128, ECBVarKey128 and ECBVarTxt128), of those whose
# plaintext ends in eight zero bytes: a counter has 64 bits, which the plaintexts of FIPS 197 itself exceed.
@pytest.mark.parametrize(
    ("key", "plaintext", "ciphertext"),
    [
        ("10a58869d74be5a374cf867cfb473859", "00" * 16, "6d251e6944b051e04eaa6fb4dbf78465"),
        ("80000000000000000000000000000000", "00" * 16, "0edd33d3c621e546455bd8ba1418bec8"),
        ("ffffffffffffffffffffffffffffffff", "00" * 16, "a1f6258c877d5fcd8964484538bfc92c"),
        ("00" * 16, "80" + "00" * 15, "3ad78e726c1ec02b7ebfe92b23d9ec34"),
        ("00" * 16, "c0" + "00" * 15, "aae5939c8efdf2f04e60b9fe7117b2c2"),
        ("00" * 16, "ff" * 8 + "00" * 8, "f807c3e7985fe0f5a50e2cdb25c5109e"),
    ],
)
def test_published_answers(path: str, key: str, plaintext: str, ciphertext: str) -> None:
    counter = int.from_bytes(bytes.fromhex(plaintext), "little")
    assert _kernels.prg_u64(bytes.fromhex(key), counter, 2).astype("<u8").tobytes().hex() == ciphertext


def test_the_twin_meets_fips_197() -> None:
    # FIPS 197, appendix C.1.
    cipher = AES.new(bytes(range(16)), AES.MODE_ECB)
    plaintext = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert cipher.encrypt(plaintext).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.binary(min_size=16, max_size=16),
    counter=st.one_of(st.integers(0, 2**64 - 200), st.sampled_from([0, 2**32 - 3, 2**63 - 1])),
    count=st.integers(0, 140),
)
def test_keystream_is_its_twin(path: str, key: bytes, counter: int, count: int) -> None:
    out = _kernels.prg_u64(key, counter, count)
    assert out.dtype == np.uint64
    np.testing.assert_array_equal(out, twins.prg_u64(key, counter, count))


@pytest.mark.parametrize("threads", [1, 3])
def test_long_keystreams_agree_across_threads(path: str, threads: int) -> None:
    before = _kernels.get_threads()
    _kernels.set_threads(threads)
    try:
        count = 9001 if path == "portable" else 300_001
        np.testing.assert_array_equal(
            _kernels.prg_u64(bytes(16), 77, count), twins.prg_u64(bytes(16), 77, count)
        )
    finally:
        _kernels.set_threads(before)


def test_streams_may_be_read_in_pieces(path: str) -> None:
    key = bytes(range(16))
    whole = _kernels.prg_u64(key, 5, 100)
    np.testing.assert_array_equal(_kernels.prg_u64(key, 5 + 13, 74), whole[26:])


def test_the_counter_may_reach_its_end_but_not_pass_it(path: str) -> None:
    key = bytes(16)
    np.testing.assert_array_equal(_kernels.prg_u64(key, 2**64 - 3, 6), twins.prg_u64(key, 2**64 - 3, 6))
    assert len(_kernels.prg_u64(key, 2**64 - 1, 1)) == 1
    assert len(_kernels.prg_u64(key, 2**64 - 1, 0)) == 0
    with pytest.raises(ValueError, match="counter runs past"):
        _kernels.prg_u64(key, 2**64 - 3, 7)


@pytest.mark.parametrize(
    ("key", "counter", "count", "error", "match"),
    [
        (bytes(15), 0, 1, ValueError, "key must have 16 bytes"),
        (bytes(32), 0, 1, ValueError, "key must have 16 bytes"),
        ("k" * 16, 0, 1, TypeError, "key must be bytes"),
        (bytes(16), -1, 1, ValueError, "counter must be in"),
        (bytes(16), 2**64, 1, ValueError, "counter must be in"),
        (bytes(16), 0.0, 1, TypeError, "counter must be an integer"),
        (bytes(16), 0, -1, ValueError, "count must be in"),
        (bytes(16), 0, 2**60, ValueError, "count must be in"),
    ],
)
def test_prg_refuses(key: bytes, counter: int, count: int, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _kernels.prg_u64(key, counter, count)
