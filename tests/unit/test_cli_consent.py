"""`privinfer consent` and `privinfer commit`: what they write, print and refuse."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privinfer.session import Identity, Manifest
from privinfer.session.consent import Consent, from_file
from tests.adversarial import stage

CONFIG, INTEGRITY, CONSENT = 11, 23, 31  # exit codes
RANGES = [part for name in stage.SHAPES for part in ("--range", f"{name}=-4:4")]
DRAFT = """
version = 1
backend = "mpc"
deadline = 20.0
connect_timeout = 40.0

[terms]
purpose = "risk of lung disease"
consent = "patient"

[roles]
model_owner = "startup"
evaluators = ["startup", "hospital"]
helper = "helper"

[inputs]
xray = "hospital"
dna = "dna_company"
blood = "laboratory"

[receivers]
risk = "patient"
"""


@pytest.fixture
def privinfer(privinfer: Any) -> Any:
    """Run the command in this process: standard output, or with `code` the error's two lines."""

    def run(*arguments: Any, code: int = 0) -> str:
        left, out, err = privinfer(*arguments)
        assert left == code, err
        assert "Traceback" not in err
        return str(err if code else out)

    return run


@pytest.fixture(scope="module")
def keys(tmp_path_factory: Any) -> Path:
    """Keys, certificates and the model of a session."""
    folder = tmp_path_factory.mktemp("keys")
    for name in stage.NAMES:
        one = Identity.generate(name, days=2)
        one.save(folder / f"{name}.key")
        (folder / f"{name}.crt").write_text(one.certificate_pem)
    (folder / "risk.onnx").write_bytes(stage.onnx_bytes())
    return folder


@pytest.fixture
def at_home(keys: Path, tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder with those and a draft, as working directory."""
    shutil.copytree(keys, tmp_path, dirs_exist_ok=True)
    ports = iter(range(7101, 7107))
    parties = [
        f'[[parties]]\nname = "{n}"\naddress = "127.0.0.1:{next(ports)}"\ncertificate_file = "{n}.crt"\n'
        for n in stage.NAMES
    ]
    (tmp_path / "draft.toml").write_text(DRAFT + "\n".join(parties))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sealed(at_home: Path, privinfer: Any) -> Path:
    """The same with an opening and a sealed session."""
    privinfer("commit", "risk.onnx", "--identity", "startup.key", *RANGES)
    privinfer("seal", "draft.toml", "--model", "risk.onnx", "--opening", "risk.opening", *RANGES)
    return at_home


def test_a_commitment_goes_into_the_session(at_home: Path, privinfer: Any) -> None:
    said = privinfer("commit", "risk.onnx", "--identity", "startup.key", *RANGES)
    commitment = re.search(r"weights ([0-9a-f]{64})\n", said)
    assert commitment is not None
    assert stat.S_IMODE(os.stat("risk.opening").st_mode) == 0o600
    privinfer("seal", "draft.toml", "--model", "risk.onnx", "--opening", "risk.opening", *RANGES)
    assert Manifest.load("session.toml").terms.weights == commitment[1]
    again = privinfer("commit", "risk.onnx", "--identity", "startup.key", *RANGES, code=CONFIG)
    assert "risk.opening exists already" in again


def test_openings_that_do_not_fit_are_refused(sealed: Path, privinfer: Any) -> None:
    seal = ("seal", "draft.toml", "--model", "risk.onnx", "--out", "x.toml", "--opening")
    other = ["--range", "xray=-5:4", *RANGES[2:]]
    assert "is of another model" in privinfer(*seal, "risk.opening", *other, code=CONFIG)
    assert "is a key" not in privinfer(*seal, "risk.onnx", *RANGES, code=CONFIG)
    os.chmod("risk.opening", 0o644)
    assert "can be read by others" in privinfer(*seal, "risk.opening", *RANGES, code=CONFIG)
    os.chmod("risk.opening", 0o600)
    party = ("party", "startup", "--model", "risk.onnx", *RANGES)
    assert "opening is missing" in privinfer(*party, code=CONFIG)
    privinfer("commit", "risk.onnx", "--identity", "startup.key", "--out", "other.opening", *RANGES)
    assert "other weights, or with another opening" in privinfer(
        *party, "--opening", "other.opening", code=CONFIG
    )
    privinfer("commit", "risk.onnx", "--identity", "helper.key", "--out", "helper.opening", *RANGES)
    assert "another identity than startup's" in privinfer(*party, "--opening", "helper.opening", code=CONFIG)
    (sealed / "other.onnx").write_bytes(stage.onnx_bytes(seed=9))
    other_weights = ("party", "startup", "--model", "other.onnx", *RANGES, "--opening", "risk.opening")
    privinfer(*other_weights, code=CONFIG)


def test_a_session_that_asks_for_consent_names_the_weights(at_home: Path, privinfer: Any) -> None:
    said = privinfer("seal", "draft.toml", "--model", "risk.onnx", *RANGES, code=CONFIG)
    assert "terms.weights is missing" in said


def test_grant_show_revoke(sealed: Path, privinfer: Any) -> None:
    said = privinfer("consent", "grant", "patient", "--until", "2100-01-31", "--uses", 3)
    for part in (
        "patient.consent",
        "xray of hospital",
        "risk of lung disease",
        "receiver     patient",
        "uses         3",
    ):
        assert part in said
    one = from_file("patient.consent")
    assert isinstance(one, Consent)
    assert one.weights.hex() == Manifest.load("session.toml").terms.weights
    assert one.inputs == stage.INPUTS
    shown = privinfer("consent", "show", "patient.consent", "--certificate", "patient.crt")
    assert "to 2100-01-31 00:00:00 UTC" in shown
    assert "signature    good\n" in shown
    said = privinfer("consent", "show", "patient.consent", "--certificate", "hospital.crt", code=CONFIG)
    assert "was not signed with hospital.crt" in said
    privinfer("consent", "revoke", "patient", "patient.consent")
    assert f"revokes      {one.id.hex()}" in privinfer("consent", "show", "patient.revocation")
    revoke = ("consent", "revoke", "hospital", "patient.revocation", "--uses", "uses")
    assert "hospital: noted; " in privinfer(*revoke)
    assert "hospital: was noted before; " in privinfer(*revoke)
    show = ("consent", "show", "patient.consent", "--uses", "uses", "--owner")
    shown = privinfer(*show, "hospital")
    assert "0 of 3 uses spent" in shown
    assert "revoked at" in shown
    assert "belongs to hospital" in privinfer(*show, "laboratory", code=CONFIG)


def test_what_the_consent_commands_refuse(sealed: Path, privinfer: Any) -> None:
    grant = ("consent", "grant", "patient", "--until", "2100-01-31")
    asked = privinfer("consent", "grant", "hospital", "--until", "2100-01-31", code=CONFIG)
    assert "asks for the consent of patient, not of hospital" in asked
    assert "--until soon is not a time" in privinfer(*grant[:-1], "soon", code=CONFIG)
    assert "until of the consent" in privinfer(*grant[:-1], "2020-01-01", code=CONFIG)
    assert "no input 'x'" in privinfer(*grant, "--input", "x", code=CONFIG)
    privinfer(*grant)
    assert "patient.consent exists already" in privinfer(*grant, code=CONFIG)
    revoke = ("consent", "revoke", "patient", "patient.consent")
    assert "not the one of patient" in privinfer(
        "consent", "revoke", "hospital", "patient.consent", code=CONFIG
    )
    assert "is a consent, and an owner" in privinfer(*revoke, "--uses", "uses", code=CONFIG)
    assert "is no ledger" in privinfer(
        "consent", "show", "patient.consent", "--uses", "none", "--owner", "hospital", code=CONFIG
    )
    assert not (sealed / "none").exists()
    privinfer(*revoke)
    assert "is a revocation already" in privinfer(
        "consent", "revoke", "patient", "patient.revocation", code=CONFIG
    )
    (sealed / "x").write_bytes(b"no consent")
    assert "consent cannot be read" in privinfer("consent", "show", "x", code=INTEGRITY)


def test_party_looks_at_its_own_side_first(sealed: Path, privinfer: Any) -> None:
    np.save("xray.npy", np.zeros((1, 4)))
    privinfer("consent", "grant", "patient", "--until", "2100-01-31", "--input", "xray")
    hospital = ("party", "hospital", "--input", "xray=xray.npy")
    assert "has no ledger" in privinfer(*hospital, code=CONFIG)
    said = privinfer(*hospital, "--uses", "uses", "--consent", "patient.consent", code=CONFIG)
    assert "brings a consent that nobody asks for" in said
    assert "brought no consent" in privinfer("party", "patient", code=CONSENT)
    said = privinfer("party", "patient", "--consent", "patient.consent", code=CONSENT)
    assert "does not cover input 'blood' of laboratory" in said
    (sealed / "x").write_bytes(b"no consent")
    assert "consent cannot be read" in privinfer("party", "patient", "--consent", "x", code=CONFIG)
    assert "no such file" in privinfer("party", "patient", "--consent", "y", code=CONFIG)
