"""Receipts of threshold CKKS: with everybody there, and where a key holder is lost and done without."""

from __future__ import annotations

import pytest

from privinfer.errors import IntegrityError
from privinfer.runtime.audit import Audit
from privinfer.session import opening, receipt
from privinfer.session.compare import compare
from privinfer.session.terms import Terms
from tests.adversarial import ckks_stage as stage
from tests.adversarial.ckks_stage import MODEL_OWNER, OWNER
from tests.adversarial.test_ckks_threshold import killed, right
from tests.support.simulate_ckks import small_ring

TERMS = Terms(receipts=True)


@pytest.fixture(autouse=True, scope="module")
def ring():
    with small_ring():
        yield


def test_all_there(tmp_path):
    base = stage.manifest(terms=TERMS)
    right(stage.play(base, receipts=tmp_path).run())
    found = compare([receipt.load(tmp_path / f"{name}.receipt") for name in base.names])
    assert found.findings == []
    assert sum(found.agreed.values()) > 100
    shown = Audit(found, opening.load(tmp_path / f"{OWNER}.opening"))
    values = stage.rows()[OWNER]["x"]
    said = shown.input("x", values)
    assert said["commitment"] == "opens to these values"
    assert said["masked"] == {
        MODEL_OWNER: "not checked: this backend's ciphertexts do not derive from the commitment"
    }
    with pytest.raises(IntegrityError):
        shown.input("x", values + 1)


@pytest.mark.parametrize("moment", [("ready", 0), ("share", 1)])
def test_one_lost(tmp_path, moment):
    """It is in every receipt who was lost, and in what is left everything agrees."""
    base = stage.manifest(deadline=1.0, terms=TERMS)
    outcomes = killed({"beta": moment}, base, receipts=tmp_path)
    right(outcomes)
    found = [receipt.load(tmp_path / f"{name}.receipt") for name in outcomes]
    assert {tuple(one.missing) for one in found} == {("beta",)}
    assert {one.code for one in found} == {None}
    assert all("beta" not in leg.peers for one in found for leg in one.legs)
    assert compare(found).findings == []
    lost = receipt.load(tmp_path / "beta.receipt")
    assert lost.code is not None
    assert compare([*found, lost]).findings == []
