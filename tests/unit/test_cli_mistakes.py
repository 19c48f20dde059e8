"""Deliberate mistakes at the planner's and the project's commands: one line of error, one hint, a number."""

from __future__ import annotations

import builtins
import datetime as dt
import json
import os
import re
import shutil
import socket
import sys
import time

import numpy as np
import pytest

from privinfer import from_onnx
from privinfer.cli import doctor, page
from privinfer.cli import main as cli
from privinfer.cli import run as run_command
from privinfer.errors import InputError
from privinfer.plan.layers import Layer
from privinfer.session import Identity, Manifest

USAGE, CONFIG, MODEL, INPUT = 2, 11, 12, 13
REAL = dt.datetime


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A project from `privinfer new`, sealed."""
    folder = tmp_path_factory.mktemp("new") / "p"
    cli.app(["new", str(folder)], standalone_mode=False)
    digest = from_onnx(folder / "model.onnx").architecture.digest()
    Manifest.seal(folder / "session.draft.toml", digest).save(folder / "session.toml")
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy to spoil, and the working directory."""
    shutil.copytree(made, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def no_onnx(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "onnx" or name.startswith("onnx."):
            raise ImportError(name)
        return real(name, *rest)

    for name in [n for n in sys.modules if n == "onnx" or n.startswith("onnx.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)


def later(monkeypatch, days):
    """Set the clock of this process."""

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return REAL.now(tz) + dt.timedelta(days=days)

    monkeypatch.setattr(dt, "datetime", Clock)


def text_in_a_column(p, m):
    (p / "inputs" / "blood.npy").unlink()
    (p / "inputs" / "blood.csv").write_text("1,2,3,high\n")


def save(name, values):
    return lambda p, m: np.save(p / "inputs" / f"{name}.npy", values)


# what is done to the project; command; exit code; in the error; in the hint
MISTAKES = {
    "no model": (lambda p, m: (p / "model.onnx").unlink(), "run .", CONFIG, "model.onnx", ""),
    "no draft": (
        lambda p, m: (p / "session.draft.toml").unlink(),
        "run .",
        CONFIG,
        "cannot read draft",
        "new",
    ),
    "draft is no TOML": (
        lambda p, m: (p / "session.draft.toml").write_text("roles = ="),
        *("run .", CONFIG, "is not TOML", ""),
    ),
    "draft without receivers": (
        lambda p, m: edit(p / "session.draft.toml", "[receivers]", "[recievers]"),
        *("run .", CONFIG, "[receivers] is missing", "docs/sessions.md"),
    ),
    "an input without a file": (
        lambda p, m: (p / "inputs" / "blood.npy").unlink(),
        *("run .", INPUT, "'blood' of laboratory has no file", "blood.csv"),
    ),
    "an input with two files": (
        lambda p, m: (p / "inputs" / "blood.csv").write_text("1,2,3,4\n"),
        *("run .", INPUT, "'blood' of laboratory has several files", "one of"),
    ),
    "text in a number column": (text_in_a_column, "run .", INPUT, "blood.csv", ""),
    "too few columns": (save("blood", np.zeros((3, 3))), "run .", INPUT, "'blood'", ""),
    "out of range": (save("image", np.full((3, 16), 255.0)), "run .", INPUT, "'image'", ""),
    "a value is missing": (save("blood", np.full((3, 4), np.nan)), "run .", INPUT, "'blood'", ""),
    "files swapped": (save("genes", np.zeros((3, 16))), "run .", INPUT, "'genes'", ""),
    "rows differ": (save("genes", np.zeros((2, 8))), "run .", INPUT, "", ""),
    "no such backend": (
        lambda p, m: edit(p / "session.draft.toml", '"mpc"', '"mpz"'),
        *("run .", CONFIG, "no backend 'mpz'", "known: mpc"),
    ),
    "encryption of a ReLU": (
        lambda p, m: edit(p / "session.draft.toml", '"mpc"', '"ckks"'),
        *("run .", MODEL, "Relu cannot be computed under encryption", "to_polynomial"),
    ),
    "plain without its name": (
        lambda p, m: edit(p / "session.draft.toml", '"mpc"', '"plain"'),
        *("run .", CONFIG, "plain", "insecure"),
    ),
    "page into no folder": (None, "run . --page no/run.html", CONFIG, "no is not a folder", ""),
    "range is no range": (None, "run . --range image=1", CONFIG, "is not NAME=LOW:HIGH", ""),
    "range of nothing": (None, "run . --range blod=-4:4", CONFIG, "blod", ""),
    "folder is taken": (None, "new .", CONFIG, "exists already and is not empty", "another folder"),
    "missing extra": (lambda p, m: no_onnx(m), "new q", CONFIG, "onnx is not installed", "privinfer[onnx]"),
    "no session": (None, "estimate model.onnx no.toml", CONFIG, "cannot read session file no.toml", ""),
    "session of another model": (
        lambda p, m: edit(p / "session.toml", 'model = "', f'model = "{"0" * 64}"\n#'),
        *("estimate model.onnx session.toml", CONFIG, "not the one the session was sealed for", "draft"),
    ),
    "no such network": (
        None,
        "estimate model.onnx --net moon",
        CONFIG,
        "names no network",
        "own, lo, lan, wan",
    ),
    "prices with a typo": (
        lambda p, m: (p / "prices.toml").write_text("core_hours = 1\n"),
        *("estimate model.onnx --prices prices.toml", CONFIG, "core_hours is not a known key", "core_hour"),
    ),
    "price is a word": (
        lambda p, m: (p / "prices.toml").write_text('gigabyte = "much"\n'),
        *("estimate model.onnx --prices prices.toml", CONFIG, "gigabyte is not a number", "0.05"),
    ),
    "a certificate is gone": (
        lambda p, m: (p / "keys" / "hospital.crt").unlink(),
        *("estimate model.onnx session.draft.toml", CONFIG, "hospital.crt", ""),
    ),
    "no rows": (None, "estimate model.onnx --batch 0", USAGE, "'--batch'", "--help"),
    "party of no session": (
        None,
        "doctor --party hospital",
        CONFIG,
        "--party goes with --session",
        "session.toml",
    ),
    "key of no party": (None, "doctor --identity k", CONFIG, "--identity goes with --party", "--party NAME"),
    "page of nothing": (None, "page no.json", INPUT, "cannot read report no.json", ""),
    "page of no report": (None, "page session.toml", INPUT, "is not JSON", "--report"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(privinfer, project, monkeypatch, name):
    spoil, command, code, error, hint = MISTAKES[name]
    if spoil is not None:
        spoil(project, monkeypatch)
    # nobody measures a machine for an error
    monkeypatch.setattr("privinfer.cli.estimate.calibrate", lambda: None)
    found, out, err = privinfer(*command.split())
    err = err.replace("measuring this machine, about five seconds\n", "")
    assert found == code, err
    assert out == ""
    said = re.fullmatch(r"privinfer: error: (\S[^\n]*[^\n.])\n(?:privinfer: hint: (\S[^\n]*[^\n.])\n)?", err)
    assert said is not None, err
    assert error in said[1]
    assert hint in (said[2] or "")


# -- doctor ----------------------------------------------------------------------------------------


def findings(privinfer, *arguments):
    code, out, err = privinfer("doctor", "--json", *arguments)
    assert err == ""
    found = json.loads(out)
    assert found["schema"] == "privinfer.doctor/1"
    for one in found["findings"]:
        assert one["state"] == "ok" or one["hint"], one
    return code, {one["what"]: one for one in found["findings"]}


def test_doctor_finds_nothing(privinfer, project):
    code, found = findings(privinfer, "--session", "session.toml", "--party", "hospital", *KEY)
    assert code == 0, found
    assert {"python", "cpu", "clock", "session", "certificate", "key", "port"} <= set(found)


KEY = ("--identity", "keys/hospital.key")


def test_doctor_port_is_taken(privinfer, project):
    port = Manifest.load("session.toml").party("hospital").port
    with socket.create_server(("127.0.0.1", port)):
        code, found = findings(privinfer, "--session", "session.toml", "--party", "hospital", *KEY)
    assert code == CONFIG
    assert "address already in use" in found["port"]["said"]
    assert "another port" in found["port"]["hint"]


def test_doctor_address_of_another_machine(privinfer, project):
    port = Manifest.load("session.toml").party("hospital").port
    edit(project / "session.toml", f"127.0.0.1:{port}", f"192.0.2.7:{port}")
    code, found = findings(privinfer, "--session", "session.toml", "--party", "hospital", *KEY)
    assert code == CONFIG
    assert "one of this machine" in found["port"]["hint"]


def test_doctor_key_of_another(privinfer, project):
    code, found = findings(
        privinfer, "--session", "session.toml", "--party", "hospital", "--identity", "keys/startup.key"
    )
    assert code == CONFIG
    assert "not the key" in found["key"]["said"]


def test_doctor_clock_is_behind(privinfer, project):
    ahead = time.time() + 7200
    os.utime("session.toml", (ahead, ahead))
    code, found = findings(privinfer, "--session", "session.toml")
    assert code == CONFIG
    assert "in this clock's future" in found["clock"]["said"]
    assert "NTP" in found["clock"]["hint"]


def test_doctor_expired_certificate(privinfer, project, monkeypatch):
    later(monkeypatch, 200)
    code, found = findings(privinfer, "--session", "session.toml")
    assert code == CONFIG
    assert "has expired" in found["session"]["said"]
    assert "keygen" in found["session"]["hint"]


def test_doctor_certificate_expires_soon(privinfer, project, monkeypatch):
    monkeypatch.setattr(doctor, "SOON", dt.timedelta(days=365))
    code, found = findings(privinfer, "--session", "session.toml")
    assert code == 0
    assert found["certificate"]["state"] == "note"


def test_doctor_missing_extra(privinfer, project, monkeypatch):
    monkeypatch.setattr(doctor, "_there", lambda module: module not in ("torch", "cbor2"))
    code, found = findings(privinfer)
    assert code == CONFIG
    assert "privinfer[torch]" in found["extra torch"]["hint"]
    assert found["extra torch"]["state"] == "note"
    assert found["packages"]["state"] == "bad"


# -- what works ------------------------------------------------------------------------------------


def test_new_keeps_keys_to_itself(made):
    for file in (made / "keys").glob("*.key"):
        assert file.stat().st_mode & 0o077 == 0
    assert (made / "keys").stat().st_mode & 0o077 == 0
    assert Identity.load(made / "keys" / "hospital.key").name == "hospital"


def test_run_and_its_page(privinfer, project, monkeypatch):
    real = run_command.run_local
    monkeypatch.setattr(run_command, "run_local", lambda *a, **k: real(*a, processes=False, **k))
    code, out, err = privinfer("run", "--json", "--report", "r.json", "--page", "<run>.html")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert np.array(told["outputs"]["risk"]).shape == (3, 1)
    report = told["report"]
    assert report["largest_absolute_error"] <= report["precision"]["declared_error_bound"]
    text = (project / "<run>.html").read_text()
    for part in (
        'id="flows"',
        'id="timeline"',
        'id="layers"',
        'id="errors"',
        'id="sees"',
        "private unless two",
    ):
        assert part in text
    assert "hidden.relu" in text
    code, out, err = privinfer("page", "r.json")
    assert (code, err) == (0, "")
    assert "private unless two" in (project / "run.html").read_text()


def test_estimate_as_json(privinfer, project, monkeypatch):
    from benchmarks.predict import REFERENCE

    monkeypatch.setattr("privinfer.cli.estimate.calibrate", lambda: REFERENCE)
    code, out, _ = privinfer("estimate", "model.onnx", "--json", "--within", "1e-9", "--net", "lan")
    assert code == 0
    told = json.loads(out)
    assert told["schema"] == "privinfer.estimate/1"
    assert len(told["choices"]) == 5
    assert "more than wished" in told["verdict"]["lan"]
    assert all(one["misses"]["within"] > 1 for one in told["ranking"]["lan"])
    code, out, _ = privinfer("estimate", "model.onnx", "session.draft.toml", "--net", "own")
    assert code == 0
    assert "own: take mpc" in out


# -- the page alone --------------------------------------------------------------------------------

REPORT = {
    "schema": page.SCHEMA,
    "backend": "mpc",
    "session": "ab" * 16,
    "seconds": {"setup": 1.0, "offline": 2.0, "online": 3.0},
    "online_rounds": {"input": 1},
    "precision": {"declared_error_bound": 1e-3},
    "trust": "private unless <b>two</b>",
    "insecure": [],
    "parties": {
        name: {
            "roles": ["owner"],
            "sees": ["its own x"],
            "bytes": {"sent": {"online": {other: 1000}}, "received": {"online": {other: 1000}}},
            "seconds": {"setup": 1.0, "offline": 2.0, "online": 3.0},
            "peak_rss_bytes": 1,
        }
        for name, other in (("a<script>", "b"), ("b", "a<script>"))
    },
}


def test_page_is_alone_and_has_no_script():
    text = page.page(REPORT, [Layer("<x>", ("relu",), 2, 10, 5)], [0.1, -0.1])
    for forbidden in ("<script", "http", "src=", "url(h", "@import", "<b>two", "<x>"):
        assert forbidden not in text.replace("http-equiv", "")
    assert "a&lt;script&gt;" in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert text.count("<svg") == text.count("</svg>") == 4


@pytest.mark.parametrize("missing", ["parties", "seconds", "trust", "precision"])
def test_page_of_half_a_report(missing):
    half = {k: v for k, v in REPORT.items() if k != missing}
    with pytest.raises(InputError, match="the report is not complete"):
        page.page(half)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_page_in_a_browser(tmp_path):
    import subprocess

    file = tmp_path / "run.html"
    file.write_text(page.page(REPORT, [Layer("conv", ("relu",), 2, 10, 5)], [0.1, -0.1]))
    picture = tmp_path / "run.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'u'}"]
    found = subprocess.run(
        [*command, f"--screenshot={picture}", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 'id="flows"' in found.stdout
    assert found.stdout.count("<line") == 2
    assert "Content Security Policy" not in found.stderr
    assert picture.stat().st_size > 5000
