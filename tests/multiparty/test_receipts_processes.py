"""Receipts of real processes over TLS, as six people get them by typing."""

import json
import subprocess

import numpy as np
import pytest

import privinfer
from privinfer.session import opening, receipt
from privinfer.session.compare import compare
from privinfer.session.terms import Terms
from tests.adversarial import stage
from tests.multiparty.troupe import CLI, Troupe

pytestmark = pytest.mark.slow
RANGES = [f"--range={name}=-4:4" for name in stage.SHAPES]


def typed(folder, inputs):
    """All six parties by their command; how each ended."""
    processes = {}
    for name in stage.NAMES:
        arguments = [*CLI, "party", name, "--report", f"{name}.json"]
        for key, value in inputs.get(name, {}).items():
            np.save(folder / f"{key}.npy", value)
            arguments += ["--input", f"{key}={key}.npy"]
        if name == stage.E1:
            arguments += ["--model", "model.onnx", *RANGES]
        if name == "patient":
            arguments += ["--receipt", "hers.cbor"]
        processes[name] = subprocess.Popen(
            arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    return {name: (*p.communicate(timeout=150), p.returncode) for name, p in processes.items()}


def verify(folder, *arguments):
    return subprocess.run(
        [*CLI, "verify", *arguments], check=False, cwd=folder, capture_output=True, text=True
    )


FILES = [*(f"{name}.receipt" for name in stage.NAMES if name != "patient"), "hers.cbor"]


def test_six_commands_and_an_auditor(tmp_path):
    troupe = Troupe(tmp_path, deadline=30.0, terms=Terms(receipts=True))
    ended = typed(tmp_path, stage.rows(2))
    assert {name: code for name, (_, _, code) in ended.items()} == dict.fromkeys(stage.NAMES, 0), ended
    assert troupe.session.exists()
    report = json.loads((tmp_path / "patient.json").read_text())
    assert report["receipt"] == "hers.cbor"
    inputs = ["--opening", "laboratory.opening", "--input", "blood=blood.npy"]
    found = verify(tmp_path, *FILES, "--session", "session.toml", "--json", *inputs)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert len(said["compared"]) == 30
    assert all("derives from these values" in text for text in said["opened"][0]["masked"].values())
    weights = ["--opening", "startup.opening", "--weights", "model.onnx", *RANGES]
    assert verify(tmp_path, *FILES, *weights).returncode == 0
    # the same values again would overwrite evidence
    again = subprocess.run(
        [*CLI, "party", "helper"], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 11
    assert "helper.receipt exists already" in again.stderr


def test_a_session_that_fails_leaves_receipts(tmp_path):
    Troupe(tmp_path, deadline=30.0, terms=Terms(receipts=True))
    inputs = stage.rows(1)
    inputs["laboratory"]["blood"][0, 0] = 99.0
    ended = typed(tmp_path, inputs)
    assert {code for _, _, code in ended.values()} == {13}
    found = [receipt.load(tmp_path / file) for file in FILES]
    assert {(one.code, one.culprit) for one in found} == {("PI103", "laboratory")}
    assert compare(found).findings == []
    assert verify(tmp_path, *FILES).returncode == 0


@pytest.mark.parametrize("processes", [True, False])
def test_run_local(tmp_path, processes):
    model, rows = stage.model(), stage.rows(3)
    pair = (stage.E1, stage.E2)
    folder = tmp_path / "new"
    result = privinfer.run_local(model, rows, evaluators=pair, processes=processes, receipts=folder)
    assert set(result.outputs) == {"risk"}
    found = [receipt.load(result.report["parties"][name]["receipt"]) for name in result.report["parties"]]
    assert compare(found).findings == []
    assert len(found) == len(stage.NAMES)
    assert opening.load(folder / "hospital.opening").inputs.keys() == {(0, "xray")}
