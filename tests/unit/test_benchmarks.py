"""The benchmark harness without peers and without root: one network for all, privinfer driven for real."""

import json

import numpy as np
import pytest

from benchmarks import job, network, peers, run, scaling, systems, table, workloads
from privinfer.graph import reference


@pytest.mark.parametrize("name", ["sarah-small", "sarah", "conv"])
def test_model_is_the_same_network(name):
    work = workloads.load(name)
    inputs = work.inputs(work.rows or 2)
    model, basis = workloads.as_model(work)
    ours = reference.run(model, {k: v.astype(np.float64) for k, v in inputs.items()})["output"]
    assert basis == "interval"
    np.testing.assert_allclose(ours, workloads.reference(work, inputs), atol=1e-12)


def test_every_workload_can_be_drawn_twice():
    for name in ("sarah", "matmul", "relu"):
        work = workloads.load(name)
        for k, x in work.inputs(3).items():
            np.testing.assert_array_equal(x, workloads.load(name).inputs(3)[k])
    with pytest.raises(KeyError, match="known: sarah"):
        workloads.load("nothing")


def test_resnet_has_all_kinds_of_steps():
    work = workloads.load("resnet18-64")
    assert {s.op for s in work.steps} == {"conv", "linear", "relu", "add", "maxpool", "mean"}
    assert sum(w.size + b.size for w, b in work.weights.values()) > 11_000_000


def test_job_file_comes_back(tmp_path):
    work = workloads.load("sarah-small")
    saved = job.save(tmp_path / "job.npz", work, 2)
    found = job.load(tmp_path / "job.npz")
    assert found.steps == work.steps
    assert found.owners == saved.owners == workloads.STORY
    assert found.error(saved.expected) == 0
    assert found.error(saved.expected[:1]) == float("inf")
    assert found.error(saved.expected * np.nan) == float("inf")
    for name, pair in work.weights.items():
        for a, b in zip(pair, found.weights[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_peer_that_is_not_there_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PRIVINFER_BENCHMARKS", str(tmp_path))
    assert "benchmarks.peers install spu" in (peers.why_missing("spu") or "")


def test_row_runs_without_root_and_without_peers(monkeypatch, tmp_path):
    monkeypatch.setenv("PRIVINFER_BENCHMARKS", str(tmp_path))
    monkeypatch.setattr(network, "why_no_namespaces", lambda: "this is a test")
    row = run.Row("sarah-small", 1, "lo")
    found = {e["system"]: e for e in run.measure_row(row, ["privinfer", "crypten"], 1, tmp_path)}
    ours = found["privinfer"]["summary"]
    assert ours["error"] < 2**-10
    assert ours["seconds"].keys() == {"offline", "online", "total", "whole", "until all returned"}
    assert ours["bytes"]["offline"]["helper"] > 0
    assert "wire_bytes" not in ours  # this machine's loopback is not ours alone
    assert found["crypten"]["status"] == "not run"
    results = {
        "started": "2026-01-01",
        "note": "",
        "repeat": 1,
        "machine": run.machine(),
        "versions": {},
        "networks": {"lo": {"unavailable": "this is a test"}},
        "rows": list(found.values()),
    }
    page = table.page({"privinfer.benchmark/1": json.loads(json.dumps(results))})
    assert "| sarah-small, batch 1, lo | privinfer |" in page
    assert "benchmarks.peers install crypten" in page
    again = table.page({"privinfer.benchmark/1": results}, [results | {"started": "2026-02-02"}])
    assert again.count("| sarah-small, batch 1, lo | privinfer |") >= 2
    assert "2026-02-02, once." in again


def test_titles_of_rows_that_have_one_size():
    for name in workloads.CATALOGUE:
        sized = workloads.load(name).rows is not None if "resnet" not in name else False
        title = table.row_title({"workload": name, "batch": 1, "net": "lo"})
        assert ("batch" not in title) == sized, title


def test_network_that_cannot_be_made_says_why(monkeypatch):
    monkeypatch.setattr(network, "why_no_namespaces", lambda: "this is a test")
    assert network.measure("wan") == {"unavailable": "this is a test"}


def test_system_that_fails_takes_nobody_with_it(monkeypatch, tmp_path):
    monkeypatch.setattr(network, "why_no_namespaces", lambda: "this is a test")
    found = list(run.measure_row(run.Row("sarah-small", 1, "lan"), ["privinfer"], 1, tmp_path))
    assert (found[0]["status"], found[0]["reason"]) == ("failed", "this is a test")


def test_fits():
    xs = [1, 2, 4, 8, 16, 32]
    assert scaling.fits(xs, [3.0 * x for x in xs])["exponent"] == pytest.approx(1)
    assert scaling.fits(xs, [2.0 * x * x for x in xs])["exponent"] == pytest.approx(2)
    line = scaling.fits(xs, [7.0 + 2 * x for x in xs])
    assert (line["fixed"], line["each_more"]) == (pytest.approx(7), pytest.approx(2))


def test_sweeps_build_models():
    for sweep in scaling.sweeps("sarah-small").values():
        work, batch = sweep.build(sweep.values[1])
        model, basis = workloads.as_model(work)
        assert batch >= 1
        assert basis == "interval"
        assert len(model.architecture.inputs) == len(work.sources)


def test_every_default_system_is_described():
    for key in systems.DEFAULT:
        assert systems.SPECS[key].trust
    assert table.page({}).count("There was no run yet") == 1


def test_page_has_a_section_on_ckks():
    took = {"median": 0.1, "min": 0.09, "max": 0.2}
    kinds = dict.fromkeys(("public", "relinearisation", "rotations"), took)
    sent = {"public": 10**6, "relinearisation": 2 * 10**6, "rotations": 3 * 10**6}
    keys = {"system": "ours", "parties": 3, "seconds": took, "by_kind": kinds, "bytes": sent}
    whole = {
        "single": {
            "seconds": took,
            "error": 1e-4,
            "rounds": 12,
            "bytes": {"a": 1},
            "peak_rss_bytes": {"a": 1},
        },
        "alone": {"seconds": took, "error": 1e-5, "steps": {"linear dense": took}},
        "setup": {"seconds": 5.0, "bytes": {"a": 10**6}},
        "batches": {"rows": 100, "batch": 20, "same_decisions": 100, "error": 1e-4, "seconds_a_row": 0.5},
    }
    missing = {"system": "TenSEAL", "reason": "not installed"}
    results = {
        "schema": "privinfer.benchmark.ckks/1",
        "started": "2026-01-01",
        "note": "",
        "repeat": 1,
        "machine": run.machine(),
        "versions": {},
        "parts": {
            "product": [{"system": "ours", "seconds": took, "error": 1e-9, "n": 5}, missing],
            "keys": [keys | {"declared_bytes": sent}, keys | {"declared_bytes": None, "system": "theirs"}],
            "demo": whole,
            "sarah": whole | {"tenseal": missing},
        },
    }
    page = table.page({results["schema"]: json.loads(json.dumps(results))})
    assert "| ours | 0.1 (0.09-0.2) | 1.0e-09 | 5 |" in page
    assert "| 3 | ours | 0.1 (0.09-0.2) | 0.1 / 0.1 / 0.1 | 1 / 2 / 3 | 6 | yes |" in page
    assert "100 test patients, 20 at a time: 100 decisions as in the clear" in page
    assert "TenSEAL: not installed." in page
