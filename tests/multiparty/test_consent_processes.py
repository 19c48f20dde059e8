"""Consent with real processes, as people type it: granted, used up, revoked; kill -9 keeps a use spent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privinfer import run_local
from privinfer.cli import main as cli
from privinfer.runtime.uses import Uses
from privinfer.session import Identity
from privinfer.session.consent import Consent, from_file
from tests.adversarial import stage
from tests.multiparty.troupe import CLI, Troupe
from tests.support import consents as kit

pytestmark = pytest.mark.slow
RANGES = [part for name in stage.SHAPES for part in ("--range", f"{name}=-4:4")]
ROWS = stage.rows()
LIMIT = 120.0  # seconds; only a hang takes so long


class Six:
    """Six terminals in one folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        troupe = Troupe(folder, deadline=10.0)
        draft = troupe.manifest
        lines = ["version = 1", 'backend = "mpc"', "deadline = 30.0", "connect_timeout = 90.0"]
        lines += ["[terms]", f'purpose = "{kit.PURPOSE}"', 'consent = "patient"']
        lines += [
            "[roles]",
            'model_owner = "startup"',
            'evaluators = ["startup", "hospital"]',
            'helper = "helper"',
        ]
        lines += ["[inputs]", *(f'{k} = "{v}"' for k, v in stage.INPUTS.items())]
        lines += ["[receivers]", 'risk = "patient"']
        for party in draft.parties:
            (folder / f"{party.name}.crt").write_text(party.certificate_pem)
            lines += ["[[parties]]", f'name = "{party.name}"', f'address = "{party.address}"']
            lines += [f'certificate_file = "{party.name}.crt"']
        (folder / "draft.toml").write_text("\n".join(lines))
        (folder / "session.toml").unlink()
        for own in ROWS.values():
            for name, values in own.items():
                np.save(folder / f"{name}.npy", values)
        self.type("commit", "model.onnx", "--identity", "startup.key", "--out", "risk.opening", *RANGES)
        self.type("seal", "draft.toml", "--model", "model.onnx", "--opening", "risk.opening", *RANGES)

    def type(self, *arguments: Any) -> None:
        """One command that succeeds, in this process: starting Python takes longer than all of it."""
        self.patch.setattr(sys, "argv", ["privinfer", *map(str, arguments)])
        self.patch.chdir(self.folder)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0, arguments

    @staticmethod
    def environment() -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def start(self, consent: str) -> dict[str, subprocess.Popen[str]]:
        """All six parties of a session."""
        owners = {owner: name for name, owner in stage.INPUTS.items()}
        more: dict[str, list[str]] = {
            **{o: ["--input", f"{n}={n}.npy", "--uses", f"uses-{o}"] for o, n in owners.items()},
            "startup": ["--model", "model.onnx", "--opening", "risk.opening", *RANGES],
            "patient": ["--consent", consent, "--output", "answer"],
            "helper": [],
        }
        return {
            name: subprocess.Popen(
                [*CLI, "party", name, *more[name]],
                cwd=self.folder,
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in stage.NAMES
        }

    def run(self, consent: str) -> dict[str, tuple[int, str]]:
        """Exit code and standard error of each."""
        started = self.start(consent)
        try:
            said = {name: one.communicate(timeout=LIMIT)[1] for name, one in started.items()}
        finally:
            end(started)
        return {name: (one.returncode, said[name]) for name, one in started.items()}

    def spent(self, consent: str) -> dict[str, int]:
        one = from_file(self.folder / consent)
        assert isinstance(one, Consent)
        return {o: Uses(self.folder / f"uses-{o}", o).state(one).spent for o in kit.OWNERS}


def end(started: dict[str, subprocess.Popen[str]]) -> None:
    for one in started.values():
        if one.poll() is None:
            one.kill()
            one.communicate()


def test_granted_used_up_and_revoked_in_six_terminals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    six = Six(tmp_path, monkeypatch)
    six.type("consent", "grant", "patient", "--until", "2100-01-31")
    for code, said in six.run("patient.consent").values():
        assert code == 0, said
    assert np.load(tmp_path / "answer" / "risk.npy").shape == (1, 2)
    assert six.spent("patient.consent") == dict.fromkeys(kit.OWNERS, 1)
    for name, (code, said) in six.run("patient.consent").items():
        assert code == 31, (name, said)
        assert "the consent is used up" in said, (name, said)
        assert "(culprit: patient)" in said, (name, said)
    six.type("consent", "grant", "patient", "--until", "2100-01-31", "--uses", 9, "--out", "b.consent")
    six.type("consent", "revoke", "patient", "b.consent")
    six.type("consent", "revoke", "dna_company", "b.revocation", "--uses", "uses-dna_company")
    for name, (code, said) in six.run("b.consent").items():
        assert code == 31, (name, said)
        assert "the consent was revoked at" in said, (name, said)
    assert six.spent("b.consent")["dna_company"] == 0


def test_an_owner_killed_in_a_run_has_spent_its_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    six = Six(tmp_path, monkeypatch)
    six.type("consent", "grant", "patient", "--until", "2100-01-31")
    one = from_file(tmp_path / "patient.consent")
    assert isinstance(one, Consent)
    started = six.start("patient.consent")
    try:
        until = time.monotonic() + LIMIT
        ledger = Uses(tmp_path / "uses-laboratory", "laboratory")
        while ledger.state(one).spent == 0:
            assert time.monotonic() < until
            time.sleep(0.02)
        started["laboratory"].kill()
        for process in started.values():
            process.communicate(timeout=LIMIT)
    finally:
        end(started)
    assert Uses(tmp_path / "uses-laboratory", "laboratory").state(one).spent == 1
    for name, (code, said) in six.run("patient.consent").items():
        assert code == 31, (name, said)
        assert "the consent is used up" in said, (name, said)


def test_run_local_with_processes(tmp_path: Path) -> None:
    keys = {name: tmp_path / f"{name}.key" for name in ("patient", "startup")}
    for name, path in keys.items():
        stage.identity(name).save(path)
    cast: dict[str, Any] = {"helper": "helper", "evaluators": (stage.E1, stage.E2), "model_owner": stage.E1}
    given = cast | {"identities": keys, "opening": kit.opening()}
    key = {"patient": bytes.fromhex(Identity.load(keys["patient"]).fingerprint)}
    result = run_local(stage.model(), ROWS, consent=kit.signed(kit.consent(receivers=key)), **given)
    assert result.outputs["risk"].shape == (1, 2)
