"""Every example is run as a newcomer would run it, and its answers are checked, not only its exit code."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.reference
import onnxruntime
import pytest

import privinfer
from privinfer.backends.ckks import roles as ckks
from privinfer.graph import reference

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = ("batch", "one_owner", "somebody_elses_onnx", "three_owners", "trees", "two_owners")
TRUST = "private unless two of {{{}}} collude, as long as all three follow the protocol"
ROW = re.compile(r"^ +(\d+) +(-?\d+\.\d{6}) +(-?\d+\.\d{6})$", re.MULTILINE)
PRINTED = 1e-6  # two numbers of six decimals, each off by half of the last

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run in a process group of its own, so that nothing outlives the test; returns standard output."""
    # the venv's `python` and `privinfer` first, as an activated venv has them
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=cwd,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, out + err
        with pytest.raises(ProcessLookupError):  # every party has ended with it
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return out


def script(name: str, cwd: Path) -> str:
    return run(sys.executable, EXAMPLES / f"{name}.py", cwd=cwd)


def number(pattern: str, text: str) -> float:
    found = re.findall(pattern, text)
    assert len(found) == 1, (pattern, text)
    return float(found[0])


@cache
def module(path: str) -> ModuleType:
    """A module of `examples/`, under a name that is in nobody's way."""
    spec = importlib.util.spec_from_file_location(f"example_{Path(path).name}", EXAMPLES / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def cohort() -> ModuleType:
    return module("cohort/cohort")


@cache
def logits(count: int) -> np.ndarray:
    """(count,) of the first test patients by the interpreter of the `onnx` package, in float64."""
    model = onnx.load(EXAMPLES / "cohort" / "risk.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    inputs = {k: v[:count] for k, v in cohort().load("test").inputs().items()}
    found = onnx.reference.ReferenceEvaluator(model).run(["risk"], inputs)[0]
    assert found.dtype == np.float64
    return found[:, 0]


def rows(text: str, count: int) -> np.ndarray:
    """(count, 2): the table of private and clear answers that a script prints."""
    found = np.array([[float(v) for v in row] for row in ROW.findall(text)])
    assert found.shape == (count, 3)
    assert (found[:, 0] == np.arange(count)).all()
    assert len(set(found[:, 1])) == count  # answers of different people differ
    return found[:, 1:]


def test_three_owners(tmp_path):
    said = script("three_owners", tmp_path)
    patient = int(number(r"synthetic patient (\d+): risk", said))
    logit, bound = number(r"\(logit (-?[\d.]+)\)", said), number(r"at most (\S+)", said)
    assert bound < 5e-3
    assert abs(logit - logits(8)[patient]) <= bound + PRINTED
    assert number(r"risk ([\d.]+)%", said) == pytest.approx(100 / (1 + np.exp(-logit)), abs=0.051)
    assert number(r"in the clear by (\S+),", said) <= bound
    for party, sees in (
        ("hospital", "its own xray; masked values, each as good as random to it"),
        ("dna_company", "its own dna"),
        ("laboratory", "its own blood"),
        ("startup", "its own weights; masked values, each as good as random to it"),
        ("helper", "masks, never a masked value; blinded comparisons, as good as random to it"),
        ("patient", "the result risk"),
    ):
        assert re.search(rf"^{party} +sent +[\d.]+ kB  saw {re.escape(sees)}$", said, re.MULTILINE)
    assert number(r"(\d+) online rounds", said) > 0
    assert TRUST.format("startup, hospital, helper") in said


def test_trees(tmp_path):
    said = script("trees", tmp_path)
    assert "\n50 with the species of onnxruntime\n" in said
    # one wrong turn of one of thirty trees would move a probability by more
    assert number(r"difference of a probability (\S+)", said) < 1e-3
    assert TRUST.format("startup, botanist, helper") in said


def test_six_terminals(tmp_path):
    said = run(EXAMPLES / "six_terminals" / "run.sh", "5", cwd=tmp_path)
    logit = number(r"risk [\d.]+% \(logit (-?[\d.]+)\)", said)
    assert abs(logit - logits(8)[5]) <= 5e-3 + PRINTED
    terminals = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", said, re.MULTILINE | re.DOTALL))
    names = ["hospital", "dna_company", "laboratory", "startup", "helper", "patient"]
    assert list(terminals) == names
    for name in names[:-1]:
        assert f"{name}: done; the result is the receiver's alone" in terminals[name]
        assert f"{logit:.3f}" not in terminals[name]
    assert TRUST.format("startup, hospital, helper") in said
    assert list(tmp_path.iterdir()) == []  # all of it happened in a folder that is gone


def test_serve(tmp_path):
    said = run(EXAMPLES / "serve" / "run.sh", "5", cwd=tmp_path)
    for visit in ("first", "second"):
        logit = number(rf"{visit} visit: risk [\d.]+% \(logit (-?[\d.]+)\)", said)
        assert abs(logit - logits(8)[5]) <= 5e-3 + PRINTED
    assert said.count('"code": "answered"') == 2  # of the hospital
    assert list(tmp_path.iterdir()) == []


def test_six_terminals_readme_and_script_give_the_same_commands():
    readme = (EXAMPLES / "six_terminals" / "README.md").read_text()
    shell = (EXAMPLES / "six_terminals" / "run.sh").read_text()
    model = "--model $REPO/examples/cohort/risk.onnx"
    assert f"privinfer seal session.draft.toml {model}\n" in readme
    for name, arguments in re.findall(r"^start (\w+) ?(.*)$", shell, re.MULTILINE):
        own = arguments.replace('--model "$model"', model).replace("--output answer", "")
        assert f"```sh\nprivinfer party {name} {own}".rstrip() + "\n```" in readme
        assert f"privinfer keygen {name}\n" in readme


def test_threshold(tmp_path):
    pytest.importorskip("tenseal")
    said = run(EXAMPLES / "threshold" / "run.sh", "5", cwd=tmp_path)
    logit = number(r"risk [\d.]+% \(logit (-?[\d.]+)\)", said)
    file = EXAMPLES / "cohort" / "risk-polynomial.onnx"
    model = privinfer.from_onnx(file, calibration=cohort().load("validation", n=200).inputs())
    inputs = {k: v[5:6] for k, v in cohort().load("test").inputs().items()}
    clear = reference.run(model, inputs)["risk"][0, 0]
    plan = ckks.planned(model.architecture, 5, 4)
    assert abs(logit - clear) <= ckks.declared_error(plan, plan.outputs[0]) + PRINTED
    terminals = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", said, re.MULTILINE | re.DOTALL))
    names = ["hospital", "dna_company", "laboratory", "startup", "notary", "patient"]
    assert list(terminals) == names
    for name in names[:-1]:
        assert f"{name}: done; the result is the receiver's alone" in terminals[name]
    who = "hospital, dna_company, laboratory, patient, notary"
    assert f"private unless 4 of {{{who}}} collude, as long as everybody follows the protocol" in said
    assert list(tmp_path.iterdir()) == []


def test_threshold_readme_and_script_give_the_same_commands():
    readme = (EXAMPLES / "threshold" / "README.md").read_text()
    shell = (EXAMPLES / "threshold" / "run.sh").read_text()
    model = "--model $REPO/examples/cohort/risk-polynomial.onnx --calibration calibration.npz"
    assert f"privinfer seal session.draft.toml {model}\n" in readme
    for name, arguments in re.findall(r"^start (\w+) ?(.*)$", shell, re.MULTILINE):
        own = arguments.replace('--model "$model"', "--model $REPO/examples/cohort/risk-polynomial.onnx")
        own = own.replace("--output answer", "")
        assert f"```sh\nprivinfer party {name} {own}".rstrip() + "\n```" in readme
        assert f"privinfer keygen {name}\n" in readme
    for line in re.findall(r"^privinfer fragment .*$", shell, re.MULTILINE):
        assert line.removesuffix(" >/dev/null") + "\n" in readme


def test_two_owners(tmp_path):
    said = script("two_owners", tmp_path)
    private, clear = rows(said, 8).T
    assert (np.abs(private - clear) <= number(r"bound of the difference: (\S+)", said) + PRINTED).all()
    assert ((private > 0) == (cohort().load("test", n=8).y == 1)).mean() >= 0.75  # it has learnt something
    assert TRUST.format("startup, hospital, helper") in said


def test_one_owner(tmp_path):
    said = script("one_owner", tmp_path)
    table = cohort().bloods()
    people = (table.split == "test").sum()
    assert number(r"^(\d+) people", said) == people
    assert number(r"(\d+) answers right", said) >= 0.8 * people
    assert number(r"(\d+) the same as torch's", said) == people
    assert (
        number(r"largest difference from torch (\S+)", said) <= number(r"declared bound (\S+)", said) < 5e-3
    )
    assert TRUST.format("startup, cloud, university") in said


def test_somebody_elses_onnx(tmp_path):
    said = script("somebody_elses_onnx", tmp_path)
    assert number(r"^(\d+) flowers", said) == 150
    assert number(r"(\d+) species right", said) == 147
    assert number(r"(\d+) with the species of onnxruntime", said) == 150
    assert number(r"(\d+) within the declared bound", said) == 150
    assert number(r"largest difference (\S+)", said) < 5e-3
    assert TRUST.format("startup, botanist, helper") in said


def test_iris_reference_is_what_its_attribution_says():
    folder = EXAMPLES / "iris"
    attribution = (folder / "ATTRIBUTION.md").read_text()
    with np.load(folder / "iris_mlp_opset11_io.npz", allow_pickle=False) as stored:
        arrays = {k: stored[k] for k in stored.files}
    for name, value in arrays.items():
        assert f"| `{name}` | {value.dtype} ({', '.join(map(str, value.shape))}" in attribution
    file = folder / "iris_mlp_opset11.onnx"
    onnx.checker.check_model(onnx.load(file))
    model = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    again = model.run(["output"], {"input": arrays["inputs"]})[0]
    # both runs are float32, each with the error that the script derives
    slack = 2 * module("somebody_elses_onnx").float32_rounding(arrays["inputs"].astype(np.float64))
    assert (np.abs(again - arrays["reference_output"]) <= slack).all()
    assert slack.max() < 1e-3


def test_batch(tmp_path):
    said = script("batch", tmp_path)
    private, clear = rows(said, 16).T
    bound, reference = number(r"bound (\S+)", said), logits(16)
    assert number(r"off from float64 by at most (\S+),", said) <= bound < 5e-3
    assert (np.abs(private - reference) <= bound + PRINTED).all()
    assert (np.abs(clear - reference) <= bound + PRINTED).all()
    assert ((private > 0) == (clear > 0)).all()
    figures = re.findall(r"^ +([\d.]+) patients/s +([\d.]+) s  (.+)$", said, re.MULTILINE)
    assert [what.split(",")[0] for _, _, what in figures] == [
        "online phase",
        "offline and online",
        "all",
        "in the clear",
    ]
    for rate, seconds, what in figures[:3]:
        low, high = (16 / (float(seconds) + d) for d in (0.0006, -0.0006))
        assert low - 0.06 <= float(rate) <= high + 0.06, what
    assert "over loopback" in said
    assert "their imports" in said


def test_every_script_is_listed_explained_and_short():
    table = (EXAMPLES / "README.md").read_text()
    assert {p.stem for p in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    for name in SCRIPTS:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert f"| `{name}.py` |" in table
        docstring = text.split('"""')[1]
        assert "What happens:" in docstring
        assert "Who sees what:" in docstring
        if re.search(r"(?<!\.)\bload\(", text):
            assert "synthetic" in docstring
        assert len(text.splitlines()) <= 65
