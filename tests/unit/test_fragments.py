"""Fragments by the CKKS backend: keys, packing, encryption, and the command."""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privinfer.backends.ckks import fragments
from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.protocols.ckks import encryption, noise, public_switch, rekey
from privinfer.protocols.ckks.keys import KeyShare, OwnKey
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.ckks.smudging import Smudging
from privinfer.session import fragment, keyfile
from privinfer.session.identity import Identity
from tests.support.ckks import permit, seated

SMALL = Parameters(1024, 2, insecure=True)
OWNER, STRANGER = Identity.generate("hospital", days=2), Identity.generate("laboratory", days=2)
XRAY = np.random.default_rng(3).uniform(0, 1, (2, 7, 5))
SIGMA = math.sqrt(10.5)
USAGE, CONFIG, INPUT, INTEGRITY = 2, 11, 13, 23  # exit codes


def bound(n: int) -> float:
    """What no slot of a fresh encryption, v e + e0 + e1 s, exceeds in one run of a million.

    The products are, in each slot, of two complex Gaussians: |v e| exceeds t deviations with probability
    2 t K1(2 t), for t = 12.6 below 2^-32; the real part's deviation is sqrt(2) smaller.
    """
    return 18 * SIGMA * math.sqrt(4 * n / 3 + 1) * math.sqrt(n / 2) / SCALE + 2.0**-40


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, OwnKey]:
    file = tmp_path / "hospital.ckks"
    fragments.make_key(file, OWNER, SMALL)
    return file, fragments.open_key(file, OWNER, insecure=True)


def slots_of(secret: KeyShare, data: np.ndarray) -> np.ndarray:
    """Decrypt one ciphertext to real slots."""
    parameters = secret.parameters
    plain = encryption.decrypt(parameters, secret, data)
    ring, basis = parameters.ring, parameters.data(1)
    low = ring.intt(np.ascontiguousarray(plain[:1]), basis)[0].astype(np.int64)
    q = parameters.primes[0]
    low[low > q // 2] -= q  # |values| < 1/4 and the coefficients of a real vector are below its largest slot
    return ring.decode(low.astype(np.float64), SCALE).real


# -- keys ------------------------------------------------------------------------------------------


def test_key_comes_back(key: tuple[Path, OwnKey]) -> None:
    file, own = key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    header = keyfile.read_key_header(file)
    assert header.key_id == own.public.digest()
    assert header.parameters == SMALL.digest()
    secret = own.secret.expose()
    assert set(np.unique(secret)) == {-1, 0, 1}
    assert secret.astype(np.int8).tobytes() not in file.read_bytes()
    again = fragments.open_key(file, OWNER, insecure=True)
    assert np.array_equal(again.secret.expose(), secret)
    assert again.offline_for is None


def test_key_of_a_small_ring_is_asked_for_by_name(key: tuple[Path, OwnKey]) -> None:
    with pytest.raises(ConfigError, match="128 bits"):
        fragments.open_key(key[0], OWNER)


def test_key_file_of_other_things(tmp_path: Path) -> None:
    """An owner can sign anything; what is no key is refused all the same."""
    own = OwnKey.fresh(SMALL)
    good = own.secret.expose().astype(np.int8)
    unreduced = own.public.data.copy()
    unreduced[1, 0, 5] = SMALL.primes[0]
    fields: dict[str, Any] = {"parameters": SMALL.digest(), "key": own.public.digest()}
    files = {
        "unreduced": (good.tobytes(), unreduced, fields, IntegrityError, "not below its prime"),
        "short": (good[:-1].tobytes(), own.public.data, fields, IntegrityError, "does not hold the key"),
        "large": ((good * 2).tobytes(), own.public.data, fields, ConfigError, "coefficients in -1, 0, 1"),
        "other": (good.tobytes(), own.public.data[::-1], fields, IntegrityError, "does not hold the key"),
        "primes": (
            good.tobytes(),
            own.public.data,
            {**fields, "parameters": bytes(32)},
            ConfigError,
            "made with other primes",
        ),
    }
    for name, (secret, public, given, error, said) in files.items():
        keyfile.write_key(tmp_path / name, OWNER, secret, public, **given)
        with pytest.raises(error, match=said):
            fragments.open_key(tmp_path / name, OWNER, insecure=True)


def test_published_once(key: tuple[Path, OwnKey]) -> None:
    """The mark is on disk before the key is made, and outlives the process."""
    file, own = key
    joint = OwnKey.fresh(SMALL).public
    published = fragments.publish(file, OWNER, own, joint, b"c" * 32)
    assert published.joint == joint.digest()
    for again in (own, fragments.open_key(file, OWNER, insecure=True)):
        with pytest.raises(IntegrityError, match="published for a joint key before") as caught:
            fragments.publish(file, OWNER, again, joint, b"c" * 32)
        assert caught.value.culprit == "hospital"
    assert fragments.open_key(file, OWNER, insecure=True).offline_for == joint.digest()


# -- fragments -------------------------------------------------------------------------------------


def test_fragment_comes_back(tmp_path: Path, key: tuple[Path, OwnKey]) -> None:
    _, own = key
    file = tmp_path / "x.fragment"
    values = XRAY / 4
    fragments.encrypt(file, OWNER, own.public, "xray", values, (0, 1))
    found = fragments.load(
        file, OWNER.public, SMALL, name="xray", shape=values.shape, bounds=(0, 1), key=own.public.digest()
    )
    assert found.data.shape == (1, 2, 2, 1024)
    slots = slots_of(own.secret, found.data[0])
    assert np.abs(slots - found.layout.pack(values.reshape(-1))[0]).max() < bound(1024)


def test_fragment_of_several_ciphertexts(tmp_path: Path, key: tuple[Path, OwnKey]) -> None:
    _, own = key
    values = np.linspace(-0.2, 0.2, 1300)
    fragments.encrypt(tmp_path / "x", OWNER, own.public, "dna", values, (-1, 1))
    found = fragments.load(tmp_path / "x", OWNER.public, SMALL, name="dna", shape=(1300,), bounds=(-1, 1))
    assert found.data.shape[0] == found.layout.ciphertexts == 3
    slots = np.stack([slots_of(own.secret, c) for c in found.data])
    assert np.abs(slots - found.layout.pack(values.reshape(-1))).max() < bound(1024)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_sessions_of_other_levels(tmp_path: Path, key: tuple[Path, OwnKey], levels: int) -> None:
    """All chains of one N share their primes: fewer levels take fewer limbs, more take what there is."""
    _, own = key
    values = XRAY / 4
    fragments.encrypt(tmp_path / "x", OWNER, own.public, "xray", values, (0, 1))
    session = Parameters(1024, levels, insecure=True)
    found = fragments.load(
        tmp_path / "x", OWNER.public, session, name="xray", shape=XRAY.shape, bounds=(0, 1)
    )
    assert found.data.shape[2] == min(levels, 2)
    at_session = fragments.for_session(own, session)
    slots = slots_of(at_session.secret, found.data[0])
    assert np.abs(slots - found.layout.pack(values.reshape(-1))[0]).max() < bound(1024)


@pytest.mark.parametrize("way", ["online", "offline"])
def test_moved_under_a_joint_key(tmp_path: Path, key: tuple[Path, OwnKey], way: str) -> None:
    """Months later: three key holders with more levels, and the owner's key from its file."""
    file, own = key
    values = XRAY / 4
    fragments.encrypt(tmp_path / "x", OWNER, own.public, "xray", values, (0, 1))
    table = seated(3)
    session, consent = table.parameters, b"c" * 32
    own = fragments.open_key(file, OWNER, insecure=True)
    found = fragments.load(
        tmp_path / "x", OWNER.public, session, name="xray", shape=XRAY.shape, bounds=(0, 1)
    )
    ciphertext = found.data[0]
    if way == "online":
        c1, smudging = np.ascontiguousarray(ciphertext[1]), Smudging(20)
        mine = fragments.for_session(own, session)
        share = rekey.switch(session, mine, table.public, c1, smudging, permit("rekey", c1))
        moved = public_switch.finish(session, np.ascontiguousarray(ciphertext[0]), share.data)
        std = noise.rekey_online(session, 3, smudging)
    else:
        published = fragments.publish(file, OWNER, own, table.public, consent)
        moved = rekey.apply(session, published, table.public, consent, ciphertext)
        std = noise.rekey_offline(session, 3, 2)
    limit = bound(1024) + 18 * std * math.sqrt(1024 / 2) / SCALE
    assert np.abs(slots_of(table.joint, moved) - found.layout.pack(values.reshape(-1))[0]).max() < limit


def test_two_fragments_share_no_randomness(tmp_path: Path, key: tuple[Path, OwnKey]) -> None:
    _, own = key
    for name in "ab":
        fragments.encrypt(tmp_path / name, OWNER, own.public, "xray", XRAY, (0, 1))
    a, b = (
        fragment.read_fragment(tmp_path / n, OWNER.public, name="xray", shape=XRAY.shape, bounds=(0, 1))
        for n in "ab"
    )
    assert not np.any(a.data == b.data)


def test_session_of_another_ring(tmp_path: Path, key: tuple[Path, OwnKey]) -> None:
    fragments.encrypt(tmp_path / "x", OWNER, key[1].public, "xray", XRAY, (0, 1))
    other = Parameters(2048, 2, insecure=True)
    with pytest.raises(ConfigError, match="N = 1024, and the session has N = 2048"):
        fragments.load(tmp_path / "x", OWNER.public, other, name="xray", shape=XRAY.shape, bounds=(0, 1))


def test_too_small_a_ring_for_a_session(tmp_path: Path) -> None:
    """What was made by the name `insecure` is not let into a session that was not."""
    weak = OwnKey.fresh(Parameters(4096, 2, insecure=True))
    fragments.encrypt(tmp_path / "x", OWNER, weak.public, "xray", XRAY, (0, 1))
    with pytest.raises(ConfigError, match="for 128 bits of security"):
        fragments.load(
            tmp_path / "x", OWNER.public, Parameters(4096, 1), name="xray", shape=XRAY.shape, bounds=(0, 1)
        )


def test_fragment_of_other_things(tmp_path: Path, key: tuple[Path, OwnKey]) -> None:
    """Signed by the owner and still refused."""
    fields: dict[str, Any] = {
        "name": "x",
        "shape": (4,),
        "bounds": (0.0, 1.0),
        "parameters": SMALL.digest(),
        "key": key[1].public.digest(),
        "scale": SCALE,
    }
    good = np.zeros((1, 2, 2, 1024), np.uint64)
    bad = good.copy()
    bad[0, 1, 1, -1] = SMALL.primes[1]
    cases = {
        "unreduced": (bad, fields, "not below its prime"),
        "count": (np.zeros((2, 2, 2, 1024), np.uint64), fields, "packed or scaled by another rule"),
        "scale": (good, {**fields, "scale": SCALE / 2}, "packed or scaled by another rule"),
    }
    for name, (data, given, said) in cases.items():
        fragment.write_fragment(tmp_path / name, OWNER, data, **given)
        with pytest.raises(IntegrityError, match=said) as caught:
            fragments.load(tmp_path / name, OWNER.public, SMALL, name="x", shape=(4,), bounds=(0, 1))
        assert caught.value.culprit == "hospital"


@pytest.mark.parametrize(
    ("values", "bounds", "said"),
    [
        (np.array([0.5, 1.5]), (0, 1), r"leaves its range \(0, 1\)"),
        (np.array([-0.1]), (0, 1), "leaves its range"),
        (np.array([np.nan]), (0, 1), "NaN or infinity"),
        (np.array([np.inf]), (0, 1), "NaN or infinity"),
        (np.zeros(0), (0, 1), "empty or too large"),
        (np.zeros((1,) * 9), (0, 1), "empty or too large"),
        (np.array(["a"]), (0, 1), "real numbers are needed"),
        (np.array([1j]), (0, 1), "real numbers are needed"),
        (np.array([True]), (0, 1), "real numbers are needed"),
        (np.zeros(3), (1, 0), "not a finite interval"),
        (np.zeros(3), (0, np.inf), "not a finite interval"),
        (np.zeros(3), (0, 2000), "reaches 2000, and 1024 is the most"),
    ],
)
def test_what_is_not_encrypted(
    tmp_path: Path, key: tuple[Path, OwnKey], values: np.ndarray, bounds: tuple[float, float], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        fragments.encrypt(tmp_path / "x", OWNER, key[1].public, "xray", values, bounds)
    assert not (tmp_path / "x").exists()


# -- the command -----------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def privinfer(privinfer: Run) -> Run:
    """`privinfer fragment`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code, out, err = privinfer("fragment", *arguments)
        return int(code or 0), out, err

    return run


@pytest.fixture
def refused(privinfer: Run) -> Callable[..., tuple[str, str | None]]:
    """Run a mistake; checks the house form and the code, returns error and hint."""

    def run(code: int, *arguments: object) -> tuple[str, str | None]:
        found, out, err = privinfer(*arguments)
        assert found == code, err
        assert out == ""
        assert "Traceback" not in err
        form = r"privinfer: error: (\S[^\n]*[^\n.])\n(?:privinfer: hint: (\S[^\n]*[^\n.])\n)?"
        said = re.fullmatch(form, err)
        assert said is not None, err
        return said[1], said[2]

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities, a key of full size, an image, and a fragment of it."""
    folder = tmp_path_factory.mktemp("made")
    for who in (OWNER, STRANGER):
        who.save(folder / f"{who.name}.key")
        (folder / f"{who.name}.crt").write_text(who.certificate_pem)
    fragments.make_key(folder / "hospital.ckks", OWNER, Parameters(fragments.DEGREE, fragments.LEVELS))
    np.save(folder / "xray.npy", np.full((1, 28, 28), 0.25))
    np.savez(folder / "several.npz", image=np.full((1, 28, 28), 0.5), other=np.zeros(2))
    own = fragments.open_key(folder / "hospital.ckks", OWNER)
    fragments.encrypt(folder / "old.fragment", OWNER, own.public, "xray", np.full((1, 28, 28), 0.25), (0, 1))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to what was made, and the working directory."""
    for file in made.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help(privinfer: Run) -> None:
    code, out, err = privinfer("--help")
    assert (code, err) == (0, "")
    assert re.findall(r"^│ (\w+) {2,}\S", out, re.MULTILINE) == ["keygen", "encrypt", "show"]


def test_keygen(privinfer: Run, folder: Path) -> None:
    code, out, err = privinfer("keygen", "laboratory")
    assert (code, err) == (0, "")
    own = fragments.open_key(folder / "laboratory.ckks", STRANGER)
    assert f"key {own.public.digest().hex()}\n" in out
    assert own.secret.parameters == Parameters(16384, 7)


def test_encrypt(privinfer: Run, folder: Path) -> None:
    code, out, err = privinfer("encrypt", "hospital", "xray", "xray.npy", "--range", "0:1")
    assert (code, err) == (0, "")
    size = 2 * 7 * 16384 * 8 / 1e6
    assert out == f"xray.fragment  1 x 28 x 28 in 1 ciphertexts, {size:.1f} MB\n"
    session = Parameters(16384, 5)
    found = fragments.load(
        "xray.fragment", OWNER.public, session, name="xray", shape=(1, 28, 28), bounds=(0, 1)
    )
    own = fragments.open_key(folder / "hospital.ckks", OWNER)
    slots = slots_of(fragments.for_session(own, session).secret, found.data[0])
    image = slots[:1024].reshape(32, 32)
    assert np.abs(image[:28, :28] - 0.25).max() < bound(16384)
    assert np.abs(image[28:]).max() < bound(16384)


def test_encrypt_a_named_array(privinfer: Run, folder: Path) -> None:
    given = ("encrypt", "hospital", "xray", "several.npz", "--array", "image", "--range", "0:1")
    code, _, err = privinfer(*given, "--out", "x.frag")
    assert (code, err) == (0, "")
    assert fragment.read_header("x.frag").shape == (1, 28, 28)


def test_show(privinfer: Run, folder: Path) -> None:
    code, out, err = privinfer("show", "old.fragment", "--certificate", "hospital.crt")
    assert (code, err) == (0, "")
    said = dict(re.findall(r"^(\w+) +(.*)$", out, re.MULTILINE))
    header = fragment.read_header("old.fragment")
    assert said["owner"] == "hospital"
    assert said["input"] == "xray"
    assert said["shape"] == "1 x 28 x 28"
    assert said["range"] == "0 to 1"
    assert said["ring"] == "N = 16384, 7 levels, 1 ciphertexts"
    assert said["parameters"] == Parameters(16384, 7).digest().hex()
    assert said["key"] == header.key_id.hex()
    assert said["certificate"] == OWNER.fingerprint
    assert said["signature"] == "of hospital, verified"
    assert "not checked" in privinfer("show", "old.fragment")[1]


ENCRYPT = ("encrypt", "hospital", "xray", "xray.npy")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["keygen"], USAGE, "missing argument 'name'"),
        (["keygen", "Hospital"], CONFIG, "name is not a party name"),
        (["keygen", "patient"], CONFIG, "cannot read identity patient.key: no such file or directory"),
        (["keygen", "hospital"], CONFIG, "hospital.ckks exists already"),
        (["keygen", "hospital", "--identity", "laboratory.key"], CONFIG, "identity laboratory.key is of lab"),
        (["keygen", "hospital", "--out", "no/x"], CONFIG, "cannot write no/x: no such file or directory"),
        (["keygen", "laboratory", "--degree", "1000"], CONFIG, "ring degree 1000 is not a power of two"),
        (["keygen", "laboratory", "--levels", "8"], CONFIG, "N = 16384 with 8 levels has log2(QP)"),
        (["keygen", "laboratory", "--degree", "many"], USAGE, "invalid value for '--degree'"),
        (["encrypt", "hospital", "xray"], USAGE, "missing argument 'file'"),
        ([*ENCRYPT], USAGE, "missing option '--range'"),
        ([*ENCRYPT, "--range", "low"], INPUT, "--range low is not LOW:HIGH"),
        ([*ENCRYPT, "--range", "1:0"], INPUT, "the range of input 'xray' is not a finite interval"),
        ([*ENCRYPT, "--range", "0:0.1"], INPUT, "input 'xray' leaves its range (0, 0.1)"),
        ([*ENCRYPT, "--range", "0:1", "--out", "old.fragment"], CONFIG, "old.fragment exists already"),
        ([*ENCRYPT, "--range", "0:1", "--key", "gone"], CONFIG, "cannot read key gone: no such file"),
        ([*ENCRYPT, "--range", "0:1", "--key", "old.fragment"], CONFIG, "key old.fragment "),
        ([*ENCRYPT, "--range", "0:1", "--array", "image"], INPUT, "xray.npy has no named arrays"),
        (
            ["encrypt", "laboratory", "xray", "xray.npy", "--range", "0:1", "--key", "hospital.ckks"],
            CONFIG,
            "",
        ),
        (["encrypt", "hospital", "../x", "xray.npy", "--range", "0:1"], CONFIG, "input '../x' makes no file"),
        (["encrypt", "hospital", "x", "gone.npy", "--range", "0:1"], INPUT, "there is no file gone.npy"),
        (["encrypt", "hospital", "x", "several.npz", "--range", "0:1"], INPUT, "several.npz holds 2 arrays"),
        (
            ["encrypt", "hospital", "x", "several.npz", "--range", "0:1", "--array", "z"],
            INPUT,
            "several.npz has no array 'z'",
        ),
        (["show"], USAGE, "missing argument 'file'"),
        (["show", "gone"], CONFIG, "cannot read fragment gone: no such file or directory"),
        (["show", "hospital.ckks"], CONFIG, "fragment hospital.ckks is a key"),
        (["show", "xray.npy"], INTEGRITY, "fragment xray.npy is no file of privinfer"),
        (["show", "old.fragment", "--certificate", "gone"], CONFIG, "cannot read certificate gone"),
        (
            ["show", "old.fragment", "--certificate", "hospital.key"],
            CONFIG,
            "certificate text holds a private",
        ),
        (
            ["show", "old.fragment", "--certificate", "laboratory.crt"],
            CONFIG,
            "fragment old.fragment belongs",
        ),
        (["frob"], USAGE, "no such command 'frob'"),
    ],
)
def test_mistake(
    refused: Callable[..., tuple[str, str | None]], folder: Path, arguments: list[str], code: int, error: str
) -> None:
    before = {p.name for p in folder.iterdir()}
    assert refused(code, *arguments)[0].startswith(error)
    assert {p.name for p in folder.iterdir()} == before


def test_damaged(refused: Callable[..., tuple[str, str | None]], folder: Path) -> None:
    blob = bytearray((folder / "old.fragment").read_bytes())
    blob[-1000] ^= 1
    (folder / "bad.fragment").write_bytes(blob)
    error, _ = refused(INTEGRITY, "show", "bad.fragment", "--certificate", "hospital.crt")
    assert error.startswith("fragment bad.fragment was changed after hospital signed it")
