"""`privinfer verify` as it is typed: what it prints, what it exits with."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from privinfer.cli import main as cli
from privinfer.session import receipt
from privinfer.session.terms import Terms
from tests.adversarial import stage

BASE = stage.manifest(terms=Terms(receipts=True, purpose="risk of lung disease"))
RANGES = [part for name in stage.SHAPES for part in ("--range", f"{name}=-4:4")]
CONFIG, INPUT, INTEGRITY = 11, 13, 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Receipts and openings of a session, its values, model and session file."""
    found = tmp_path_factory.mktemp("verify")
    inputs = stage.rows(2)
    outcomes = stage.Play(base=BASE, receipts=found, inputs=inputs).run()
    assert not any(o.error for o in outcomes.values())
    for name, values in stage.flat(inputs).items():
        np.save(found / f"{name}.npy", values)
        np.save(found / f"other-{name}.npy", values + 1)
    (found / "model.onnx").write_bytes(stage.onnx_bytes())
    (found / "other.onnx").write_bytes(stage.onnx_bytes(1))
    BASE.save(found / "session.toml")
    stage.manifest().save(found / "other.toml")
    one = receipt.load(found / "startup.receipt")
    chains = dict(one.legs[0].sent)
    chains["helper"] = chains["helper"][:-9] + bytes([chains["helper"][-9] ^ 1]) + chains["helper"][-8:]
    lied = dataclasses.replace(one, legs=[dataclasses.replace(one.legs[0], sent=chains)])
    (found / "lied.receipt").write_bytes(lied.to_bytes(stage.identity("startup")))
    (found / "garbage.receipt").write_bytes(b"\xa3garbage")
    (found / "open.opening").write_bytes((found / "hospital.opening").read_bytes())
    (found / "open.opening").chmod(0o644)
    return found


@pytest.fixture
def verify(folder, monkeypatch, capsys):
    """Run it in that folder: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["privinfer", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return run


ALL = [f"{name}.receipt" for name in stage.NAMES]


def test_one_receipt_says_what_was_agreed(verify):
    code, out, err = verify("patient.receipt", "--session", "session.toml")
    assert (code, err) == (0, "")
    for wanted in (
        r"backend +mpc",
        r"purpose +risk of lung disease",
        r"insecure +nothing",
        r"model +[0-9a-f]{64}, of startup",
        r"weights +committed to: [0-9a-f]{64}",
        r"input +xray \(4,\), of hospital",
        r"output +risk, for patient",
        r"party +helper: helper; version \S+",
        r"receipt +patient: done; \d{4}-",
        r"verified +the receipt agrees with itself",
    ):
        assert re.search(f"^{wanted}", out, re.MULTILINE), wanted


def test_all_receipts(verify):
    code, out, err = verify(*ALL)
    assert (code, err) == (0, "")
    assert len(re.findall(r"^compared .* messages agree$", out, re.MULTILINE)) == 30
    assert out.endswith("all receipts agree\n")


def test_json(verify):
    code, out, _ = verify(*ALL, "--json", "--opening", "hospital.opening", "--input", "xray=xray.npy")
    said = json.loads(out)
    assert code == 0
    assert said["findings"] == []
    assert said["receipts"]["helper"]["outcome"] == "done"
    assert said["opened"][0]["masked"].keys() == {"startup"}
    assert said["purpose"] == "risk of lung disease"
    assert len(said["compared"]) == 30


def test_openings(verify):
    code, out, _ = verify(*ALL, "--opening", "laboratory.opening", "--input", "blood=blood.npy")
    assert code == 0
    assert out.count("what it got derives from these values") == 2
    code, out, _ = verify(*ALL, "--opening", "startup.opening", "--weights", "model.onnx", *RANGES)
    assert code == 0
    assert out.count("what it got derives from these weights") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["none.receipt"], CONFIG, "cannot read receipt none.receipt"),
        (["garbage.receipt"], INTEGRITY, "receipt garbage.receipt cannot be read"),
        (["model.onnx"], INTEGRITY, "cannot be read"),
        ([*ALL, "--session", "other.toml"], INTEGRITY, "another session file"),
        (["lied.receipt", "helper.receipt"], INTEGRITY, r"startup -> helper diverged first at message \d+ "),
        (["lied.receipt"], INTEGRITY, "not what startup signed for helper"),
        ([*ALL, "--input", "xray=xray.npy"], CONFIG, "nothing can be opened"),
        ([*ALL, "--opening", "helper.opening"], CONFIG, "cannot read opening"),
        ([*ALL, "--opening", "open.opening"], CONFIG, "can be read by others"),
        ([*ALL, "--opening", "hospital.opening", "--input", "dna=dna.npy"], CONFIG, "owns no input 'dna'"),
        ([*ALL, "--opening", "hospital.opening", "--input", "xray=dna.npy"], INPUT, "has shape"),
        (
            [*ALL, "--opening", "hospital.opening", "--input", "xray=other-xray.npy"],
            INTEGRITY,
            r"not the input that was committed to \(culprit: hospital\)",
        ),
        (
            [*ALL, "--opening", "startup.opening", "--weights", "other.onnx", *RANGES],
            INTEGRITY,
            r"not the weights that was committed to \(culprit: startup\)",
        ),
    ],
)
def test_what_is_wrong(verify, arguments, code, error):
    found, _, err = verify(*arguments)
    assert found == code, err
    assert re.search(rf"^privinfer: error: .*{error}", err), err
    assert "Traceback" not in err
    assert err.count("\n") <= 2


def test_a_stranger_writes_no_control_characters(verify, folder):
    """What a receipt says is printed on an auditor's terminal."""
    one = receipt.load(folder / "patient.receipt")
    document = one.agreement.document.replace(b"lung disease", b"\x1b[2J disease")
    moved = dataclasses.replace(one.agreement, document=document)
    signatures = {name: stage.identity(name).sign(moved.signed) for name in stage.NAMES}
    moved = dataclasses.replace(moved, signatures=signatures)
    forged = dataclasses.replace(one, agreement=moved, entered=[], legs=[])
    (folder / "forged.receipt").write_bytes(forged.to_bytes(stage.identity("patient")))
    code, out, _ = verify("forged.receipt")
    assert code == 0
    assert "\x1b" not in out
