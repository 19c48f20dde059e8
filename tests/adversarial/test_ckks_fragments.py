"""Fragments at rest in sessions of real players: answers, a ledger, what is refused before it leaves."""

from __future__ import annotations

import re
import sqlite3
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from privinfer import run_local
from privinfer.backends.base import Private, Table
from privinfer.backends.ckks import Ckks, fragments, moving
from privinfer.cli import main as cli
from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.protocols.ckks import encryption, noise
from privinfer.protocols.ckks.keys import OwnKey
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.runtime.bring import beside, bring, check_fragments
from privinfer.session import Fragment
from tests.adversarial import stage
from tests.support import ckks_session as small

pytest.importorskip("tenseal")
OWNER = stage.identity("hospital")
BASE = small.manifest()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key of the hospital's, a fragment of its input, and others that fit less."""
    folder = tmp_path_factory.mktemp("home")
    BASE.save(folder / "session.toml")
    stage.manifest().save(folder / "mpc.toml")
    OWNER.save(folder / "hospital.key")
    x = small.rows()["hospital"]["xray"][0]
    for name, levels in (("hospital", 7), ("low", 5), ("other", 7)):
        fragments.make_key(folder / f"{name}.ckks", OWNER, Parameters(16384, levels))

    def put(file, name="xray", values=x, bounds=(-1.0, 1.0), key="hospital"):
        own = fragments.open_key(folder / f"{key}.ckks", OWNER)
        fragments.encrypt(folder / file, OWNER, own.public, name, values, bounds)

    put("xray")
    put("dna", name="dna")
    put("flat", values=x.reshape(-1))
    put("wide", bounds=(-1.0, 1.5))
    put("low", key="low")
    stranger = stage.identity("laboratory")
    fragments.make_key(folder / "laboratory.ckks", stranger, Parameters(16384, 7))
    own = fragments.open_key(folder / "laboratory.ckks", stranger)
    fragments.encrypt(folder / "theirs", stranger, own.public, "xray", x, (-1.0, 1.0))
    cut = (folder / "xray").read_bytes()
    (folder / "cut").write_bytes(cut[:-1])
    (folder / "flipped").write_bytes(cut[:-1000] + bytes([cut[-1000] ^ 1]) + cut[-999:])
    return folder


def ledger(home: Path) -> list[tuple[bytes, str]]:
    with sqlite3.connect(home / "hospital.ckks.ledger" / "ledger.sqlite") as db:
        return db.execute("SELECT digest, step FROM release ORDER BY made, step").fetchall()


def test_one_fragment_in_two_sessions(home):
    """Others bring arrays; the second session moves another ciphertext of the same numbers."""
    inputs = small.rows()
    given = {**inputs, "hospital": {"xray": Fragment(home / "xray", home / "hospital.ckks")}}
    keys = {"hospital": home / "hospital.key"}
    local = run_local(small.model(), given, backend="ckks", processes=False, identities=keys).outputs
    session = small.good(small.play(BASE, inputs=given))["patient"].outputs
    for found in (local["risk"], session["risk"]):
        assert np.abs(found - small.wanted(inputs)).max() < small.TOLERANCE
    rows = ledger(home)
    assert [step for _, step in rows] == ["fragment/0/xray/0"] * 2
    assert len({digest for digest, _ in rows}) == 2
    folder = home / "hospital.ckks.ledger"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "ledger.sqlite").stat().st_mode) == 0o600


def bringing(home: Path, inputs: dict) -> Private:
    """What the hospital brings, as its party looks at it before anything is sent."""
    m = small.manifest()
    table = Table(Ckks().cast(m), m.inputs, m.receivers, small.architecture(), bytes(32), threshold=4)
    private = Private(OWNER.sign, lambda *_: None)
    bring(m, table, OWNER, private, inputs)
    return private


@pytest.mark.parametrize(
    ("file", "key", "error", "said"),
    [
        ("dna", "hospital", InputError, "is input 'dna', not 'xray'"),
        ("flat", "hospital", InputError, r"has shape \(16,\), not \(1, 4, 4\)"),
        ("wide", "hospital", InputError, r"has values in \(-1, 1.5\), and the session takes \(-1, 1\)"),
        ("low", "low", ConfigError, "has 5 levels, and the session takes 6"),
        ("xray", "other", ConfigError, "was encrypted under another key of its owner"),
        ("theirs", "hospital", ConfigError, "belongs to laboratory, not hospital"),
        ("xray", "laboratory", ConfigError, "belongs to laboratory, not hospital"),
        ("cut", "hospital", IntegrityError, "is cut off"),
        ("flipped", "hospital", IntegrityError, "was changed after hospital signed it"),
        ("gone", "hospital", ConfigError, "cannot read fragment .*gone: no such file"),
        ("xray", "gone", ConfigError, "cannot read key .*gone.ckks: no such file"),
    ],
)
def test_what_does_not_fit_is_not_brought(home, file, key, error, said):
    with pytest.raises(error, match=said) as caught:
        bringing(home, {"xray": Fragment(home / file, home / f"{key}.ckks")})
    assert caught.value.culprit in (None, "hospital")


def test_only_its_own_inputs_and_one_row(home):
    own = Fragment(home / "xray", home / "hospital.ckks")
    with pytest.raises(InputError, match="there is no input 'dna' here"):
        bringing(home, {"xray": own, "dna": own})
    with pytest.raises(InputError, match="'dna' is a fragment, which is one row, and others have 2"):
        check_fragments("ckks", {"dna": own}, 2)
    with pytest.raises(InputError, match="'xray' is a fragment, and backend mpc takes arrays"):
        check_fragments("mpc", {"xray": own}, None)


def test_run_local_says_what_it_does_not_take(home):
    given = small.rows() | {"hospital": {"xray": Fragment(home / "xray", home / "hospital.ckks")}}
    with pytest.raises(InputError, match="backend mpc takes arrays"):
        run_local(small.model(), given)
    with pytest.raises(ConfigError, match="no clear values"):
        run_local(small.model(), given, backend="ckks", with_reference=True)
    with pytest.raises(ConfigError, match="identities name stranger"):
        run_local(small.model(), given, backend="ckks", identities={"stranger": "x"})
    with pytest.raises(InputError, match="there is no input 'x' here"):
        run_local(small.model(), {"hospital": {"x": given["hospital"]["xray"]}}, backend="ckks")


def test_the_others_hear_that_it_was_refused_and_no_more(home):
    given = small.rows() | {"hospital": {"xray": Fragment(home / "low", home / "hospital.ckks")}}
    outcomes = small.play(BASE, inputs=given)
    assert "under another key" in outcomes.pop("hospital").error.message
    for name, outcome in outcomes.items():
        assert outcome.error.culprit == "hospital", name
        assert outcome.error.message == "refused its own input before anything was sent"


def test_a_ciphertext_is_switched_once(home):
    """A step that comes again is refused, and a damaged or foreign ledger lets nothing leave."""
    p = Parameters(16384, 6)
    own = bringing(home, {"xray": Fragment(home / "xray", home / "hospital.ckks")}).fragments["xray"]
    joint = OwnKey.fresh(p)
    step = moving.Step(b"s" * 32, 0, "xray")
    assert moving.move(p, own, joint.public, step).shape == (1, 2, 6, p.n)
    with pytest.raises(IntegrityError, match="released before"):
        moving.move(p, own, joint.public, step)
    with pytest.raises(ConfigError, match="belongs to hospital"):
        beside(home / "hospital.ckks", "laboratory")


def test_noise_of_a_switch_is_the_smudging_declared(home):
    """The error of moved slots has the declared standard deviation, which floods the fragment's own noise."""
    p = Parameters(16384, 6)
    own = bringing(home, {"xray": Fragment(home / "xray", home / "hospital.ckks")}).fragments["xray"]
    joint = OwnKey.fresh(p)
    moved = moving.move(p, own, joint.public, moving.Step(b"n" * 32, 0, "xray"))[0]
    before, after = (
        p.ring.intt(encryption.decrypt(p, key, c), p.data(6))
        for key, c in ((own.own.secret, own.data[0]), (joint.secret, moved))
    )
    words = p.ring.compose(np.ascontiguousarray(p.ring.sub(after, before, p.data(6))[:3]), p.data(3))
    error = words[:, 0].astype(np.int64).astype(np.float64)
    smudging = moving.flooding(p)
    # uniform in +-2^b: of N = 16384 squares, mean 4^b / 3, the mean strays by 4^b sqrt(4 / 45 / N)
    assert abs((error**2).mean() / smudging.std**2 - 1) < 7 * 3 * np.sqrt(4 / 45 / p.n)
    assert smudging.std > 2**15 * noise.fresh(p, 1)
    assert moving.describe(p).startswith("smudging uniform in +-2^25")


# -- the command -----------------------------------------------------------------------------------

CONFIG, INPUT, INTEGRITY = 11, 13, 23  # exit codes
KEY = ("--fragment-key", "hospital.ckks")


@pytest.mark.parametrize(
    ("file", "more", "code", "said"),
    [
        ("theirs", KEY, CONFIG, "fragment theirs belongs to laboratory, not hospital (culprit: hospital)"),
        ("dna", KEY, INPUT, "fragment dna is input 'dna', not 'xray' (culprit: hospital)"),
        ("cut", KEY, INTEGRITY, "fragment cut is cut off or too long"),
        ("flipped", KEY, INTEGRITY, "fragment flipped was changed after hospital signed it"),
        ("xray", ("--fragment-key", "other.ckks"), CONFIG, "fragment xray was encrypted under another key"),
        ("xray", ("--fragment-key", "laboratory.ckks"), CONFIG, "key laboratory.ckks belongs to laboratory"),
        ("xray", (*KEY, "--session", "mpc.toml"), INPUT, "input 'xray' is a fragment, and backend mpc takes"),
        ("x.npy", KEY, CONFIG, "--fragment-key goes with a fragment"),
        ("hospital.ckks", KEY, CONFIG, "fragment hospital.ckks is a key"),
        ("x.fragment", KEY, INTEGRITY, "fragment x.fragment is no file of privinfer"),
    ],
)
def test_a_wrong_fragment_is_one_line_and_a_hint(home, monkeypatch, capsys, file, more, code, said):
    """Before the others are called: nobody listens here, and nobody is waited for."""
    monkeypatch.chdir(home)
    np.save("x.npy", np.zeros((1, 4, 4)))
    (home / "x.fragment").write_bytes((home / "x.npy").read_bytes())
    monkeypatch.setattr(sys, "argv", ["privinfer", "party", "hospital", "--input", f"xray={file}", *more])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (code, ""), err
    form = re.fullmatch(r"privinfer: error: (\S[^\n]*[^\n.])\nprivinfer: hint: (\S[^\n]*[^\n.])\n", err)
    assert form is not None, err
    assert form[1].startswith(said)
