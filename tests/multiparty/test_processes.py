"""Parties as real processes over TLS: what must work, and how it ends when one of them is lost."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import privinfer
from privinfer.backends.base import Phase
from privinfer.backends.mpc import roles
from privinfer.errors import InputError, TransportError
from privinfer.graph import reference
from privinfer.graph.lower import compile_program
from tests.adversarial import stage
from tests.multiparty.troupe import CLI, Troupe, free_ports

MODEL = stage.model()
BOUND = MODEL.architecture.precision.error_bound
PAIR = (stage.E1, stage.E2)
pytestmark = pytest.mark.slow


def clear(inputs):
    return reference.run(MODEL, stage.flat(inputs))


def plain(inputs, owners=None):
    return privinfer.run_local(MODEL, inputs, backend="plain", insecure=("plaintext",)).outputs


def close(result, inputs):
    """Within the declared bound of the clear model, and so is the oracle: twice that of each other."""
    want, oracle = clear(inputs), plain(inputs)
    for name, value in result.outputs.items():
        assert value.shape == want[name].shape
        assert np.abs(value - want[name]).max() <= BOUND
        assert np.abs(value - oracle[name]).max() <= 2 * BOUND


# -- run_local -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_run_local(count):
    inputs = stage.rows(count)
    seen = set()
    result = privinfer.run_local(
        MODEL,
        inputs,
        evaluators=PAIR,
        with_reference=True,
        progress=lambda party, role, phase, event: seen.add((party, phase)),
    )
    close(result, inputs)
    assert result.report["largest_absolute_error"] <= BOUND
    assert result.report["parties"].keys() == set(stage.NAMES)
    assert ("helper", Phase.OFFLINE) in seen
    assert json.dumps(result.report)


def test_receiver_that_is_an_evaluator():
    """Exact truncation: then the answer is that of the fixed-point oracle to the last bit."""
    inputs = stage.rows(3)
    result = privinfer.run_local(MODEL, inputs, evaluators=PAIR, receiver="hospital")
    close(result, inputs)
    assert "patient" not in result.report["parties"]


def test_receiver_that_is_the_helper():
    inputs = stage.rows()
    close(privinfer.run_local(MODEL, inputs, evaluators=PAIR, receiver="helper"), inputs)


def test_several_receivers_one_owner_of_two_inputs_and_a_model_owner_that_owns():
    rng = np.random.default_rng(5)
    a, b, c = rng.uniform(-3, 3, (2, 4)), rng.uniform(-3, 3, (2, 5)), rng.uniform(-3, 3, (2, 3))
    model = two_outputs()
    inputs = {"hospital": {"xray": a, "dna": b}, "startup": {"blood": c}}
    receivers = {"risk": "patient", "second": "doctor"}
    result = privinfer.run_local(model, inputs, receiver=receivers)
    want = reference.run(model, stage.flat(inputs))
    assert result.outputs.keys() == want.keys()
    for name, value in result.outputs.items():
        assert np.abs(value - want[name]).max() <= model.architecture.precision.error_bound
    assert result.report["parties"]["doctor"]["roles"] == ["receiver"]
    assert result.report["parties"]["startup"]["roles"] == ["owner", "model_owner", "evaluator"]


def two_outputs():
    import onnx

    proto = onnx.load_from_string(stage.onnx_bytes())
    proto.graph.node.append(onnx.helper.make_node("Relu", ["risk"], ["second"], "again"))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, ["batch", 2])
    )
    return stage.from_onnx(proto.SerializeToString(), dict.fromkeys(stage.SHAPES, (-4.0, 4.0)))


def test_run_local_names_the_owner_of_a_bad_input_before_anything_starts():
    inputs = stage.rows()
    inputs["laboratory"]["blood"][0, 0] = 4.5
    with pytest.raises(InputError, match="outside the declared range") as caught:
        privinfer.run_local(MODEL, inputs, evaluators=PAIR)
    assert caught.value.culprit == "laboratory"


# -- by hand, through the command line -------------------------------------------------------------


def test_six_commands(tmp_path):
    def run(*arguments):
        return subprocess.run([*CLI, *arguments], cwd=tmp_path, capture_output=True, check=True, text=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: run("keygen", name, "--days", "2"), stage.NAMES))
    ports = free_ports(6)
    (tmp_path / "model.onnx").write_bytes(stage.onnx_bytes())
    draft = ["version = 1", 'backend = "mpc"', "deadline = 10", "connect_timeout = 30", "", "[roles]"]
    draft += ['model_owner = "startup"', 'evaluators = ["startup", "hospital"]', 'helper = "helper"']
    draft += ["", "[inputs]", *(f'{k} = "{v}"' for k, v in stage.INPUTS.items())]
    draft += ["", "[receivers]", 'risk = "patient"']
    for name, port in zip(stage.NAMES, ports, strict=True):
        draft += ["", "[[parties]]", f'name = "{name}"', f'address = "127.0.0.1:{port}"']
        draft += [f'certificate_file = "{name}.crt"']
    (tmp_path / "draft.toml").write_text("\n".join(draft) + "\n")
    ranges = [f"--range={n}=-4:4" for n in stage.SHAPES]
    run("seal", "draft.toml", "--model", "model.onnx", *ranges)
    inputs = stage.rows(2)
    processes = {}
    for name in stage.NAMES:
        arguments = [*CLI, "party", name, "--report", f"{name}.json"]
        for key, value in inputs.get(name, {}).items():
            np.save(tmp_path / f"{key}.npy", value)
            arguments += ["--input", f"{key}={key}.npy"]
        if name == "startup":
            arguments += ["--model", "model.onnx", *ranges]
        if name == "patient":
            arguments += ["--output", "out"]
        processes[name] = subprocess.Popen(
            arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    ended = {name: (*p.communicate(timeout=60), p.returncode) for name, p in processes.items()}
    assert {name: code for name, (_, _, code) in ended.items()} == dict.fromkeys(stage.NAMES, 0), ended
    assert np.abs(np.load(tmp_path / "out" / "risk.npy") - clear(inputs)["risk"]).max() <= BOUND
    reports = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in stage.NAMES}
    sent = {n: sum(r["bytes"]["sent"]["online"].values()) for n, r in reports.items()}
    assert all(sent[n] for n in ("hospital", "startup", "dna_company", "laboratory"))
    assert not sent["helper"]
    for first, report in reports.items():  # both ends counted the same
        for second, count in report["bytes"]["sent"]["online"].items():
            assert reports[second]["bytes"]["received"]["online"][first] == count
    assert not [err for _, err, _ in ended.values() if "Traceback" in err]


# -- losing a party --------------------------------------------------------------------------------


def check(ended, victim, within, seen="TransportError"):
    for name, one in ended.items():
        if name == victim:
            continue
        assert one["error"] is not None, (name, one)
        assert one["error"][:2] == [seen, victim], (name, one)
        assert one["code"] == TransportError.exit_code
        assert one["stderr"] == "", (name, one["stderr"])
        acted = ended.get(victim, {}).get("acted")
        if acted is not None:
            assert one["ended"] - acted < within, (name, one["ended"] - acted)


DEATHS = [
    ("hospital", "setup"),
    ("hospital", "offline"),
    ("hospital", "online"),
    ("startup", "online"),
    ("helper", "offline"),
    ("patient", "joined"),
    ("laboratory", "joined"),
]


@pytest.mark.parametrize(("victim", "moment"), DEATHS)
def test_killed(tmp_path, victim, moment):
    before = os.listdir("/dev/shm")
    ended = Troupe(tmp_path, deadline=5.0).run(acts={victim: (moment, "SIGKILL")})
    assert ended[victim]["code"] == -9
    check(ended, victim, within=2.5)  # not after the deadline: the end of its stream is seen at once
    assert set(os.listdir("/dev/shm")) <= set(before)


@pytest.mark.parametrize(
    ("victim", "moment"), [("hospital", "online"), ("helper", "offline"), ("dna_company", "joined")]
)
def test_stopped(tmp_path, victim, moment):
    ended = Troupe(tmp_path, deadline=2.0).run(acts={victim: (moment, "SIGSTOP")})
    check(ended, victim, within=2.0 + 2.0)


def test_killed_before_it_joins(tmp_path):
    started = time.time()
    ended = Troupe(tmp_path, connect_timeout=4.0).run(acts={"laboratory": ("before", "SIGKILL")})
    check(ended, "laboratory", within=4.0 + 4.0)
    assert all("did not connect within 4 s" in ended[n]["error"][2] for n in ended if n != "laboratory")
    assert time.time() - started < 12


@pytest.mark.parametrize("absent", ["hospital", "helper"])  # the first and the last in the list
def test_never_comes(tmp_path, absent):
    ended = Troupe(tmp_path, connect_timeout=4.0).run(absent=(absent,))
    check(ended, absent, within=9)
    assert all(absent in one["error"][2] for one in ended.values())


def test_two_runs_and_one_that_leaves_after_the_first(tmp_path):
    inputs = [stage.rows(1, 1), stage.rows(3, 2)]
    troupe = Troupe(tmp_path, deadline=5.0)
    ended = troupe.run(inputs=inputs)
    assert not [one["error"] for one in ended.values() if one["error"]]
    for given, outputs in zip(inputs, ended["patient"]["outputs"], strict=True):
        assert np.abs(np.array(outputs["risk"]) - clear(given)["risk"]).max() <= BOUND
    assert [r["inference"] for r in ended["helper"]["reports"]] == [0, 1]


def in_chunks_of(rows):
    program = compile_program(MODEL.architecture)
    return roles.footprint(program, rows)


def test_chunks(tmp_path):
    """Seven rows, two at once, and then one row, which is no chunked run."""
    inputs = [stage.rows(7, 1), stage.rows(1, 2)]
    ended = Troupe(tmp_path, deadline=10.0, chunk_bytes=in_chunks_of(2)).run(inputs=inputs)
    assert not [one["error"] for one in ended.values() if one["error"]]
    for given, outputs in zip(inputs, ended["patient"]["outputs"], strict=True):
        assert np.abs(np.array(outputs["risk"]) - clear(given)["risk"]).max() <= BOUND
    for name, one in ended.items():
        assert [(r["inference"], r["chunks"]) for r in one["reports"]] == [(0, 4), (4, 1)], name


@pytest.mark.parametrize("victim", ["startup", "helper"])
def test_killed_in_a_later_chunk(tmp_path, victim):
    """Nothing half done is returned: the receiver has the outputs of the first chunk, and gives none."""
    steps = len(compile_program(MODEL.architecture).steps)
    troupe = Troupe(tmp_path, deadline=5.0, chunk_bytes=in_chunks_of(2))
    ended = troupe.run(inputs=[stage.rows(5)], acts={victim: (f"offline {steps + 2}", "SIGKILL")})
    assert ended[victim]["code"] == -9
    check(ended, victim, within=2.5)
    assert ended["patient"]["outputs"] == []


def test_leaves_after_the_first(tmp_path):
    troupe = Troupe(tmp_path, deadline=5.0)
    start = troupe.start
    troupe.start = lambda name, inputs, act: start(name, inputs[: 1 if name == "laboratory" else 2], act)
    ended = troupe.run(runs=2)
    assert ended["laboratory"]["error"] is None
    check(ended, "laboratory", within=0)
    assert max(one["ended"] for one in ended.values()) - ended["laboratory"]["ended"] < 3.0


def test_no_process_outlives_its_parent():
    """run_local's own process dies: its workers notice that their pipe has ended."""
    code = (
        f"import sys, os, signal; sys.path.insert(0, {str(Path(stage.__file__).parents[2])!r})\n"
        "from tests.adversarial import stage\n"
        "import privinfer\n"
        "def stop(party, role, phase, event):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pair = ('startup', 'hospital')\n"
        "privinfer.run_local(stage.model(), stage.rows(), evaluators=pair, progress=stop)\n"
    )
    mark = f"{os.getpid()}-{time.time_ns()}"
    environment = os.environ | {"PRIVINFER_TEST_MARK": mark}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == -9, done.stderr
    until = time.monotonic() + 5
    while (left := _marked(f"PRIVINFER_TEST_MARK={mark}".encode())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def _marked(mark):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(pid)
        except OSError:
            continue
    return found
