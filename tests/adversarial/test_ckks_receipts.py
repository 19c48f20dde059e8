"""Receipts of threshold CKKS: with everybody there, and where a key holder is lost and done without."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest

from privinfer.errors import IntegrityError
from privinfer.runtime import audit, engage
from privinfer.runtime.audit import Audit
from privinfer.session import opening, receipt
from privinfer.session.compare import compare
from privinfer.session.terms import Terms
from tests.adversarial import ckks_stage as stage
from tests.adversarial.ckks_stage import MODEL_OWNER, OWNER
from tests.adversarial.test_ckks_threshold import killed, right
from tests.support.simulate_ckks import SMALL, small_ring

TERMS = Terms(receipts=True)


@pytest.fixture(autouse=True, scope="module")
def ring():
    with small_ring(), mock.patch.object(audit, "parameters_of", return_value=SMALL):
        yield


def test_all_there(tmp_path):
    base = stage.manifest(terms=TERMS)
    right(stage.play(base, receipts=tmp_path).run())
    found = compare([receipt.load(tmp_path / f"{name}.receipt") for name in base.names])
    assert found.findings == []
    assert sum(found.agreed.values()) > 100
    values, shown = stage.rows()[OWNER]["x"], opening.load(tmp_path / f"{OWNER}.opening")
    said = Audit(found, shown).input("x", values)
    assert said["commitment"] == "opens to these values"
    assert "these values under the joint key" in said["encrypted"][MODEL_OWNER]
    assert MODEL_OWNER in said["encrypted"][MODEL_OWNER]
    with pytest.raises(IntegrityError, match="committed to"):
        Audit(found, shown).input("x", values + 1)
    # alone the owner's receipt shows no key but its own
    alone = Audit(compare([found.receipts[OWNER]]), shown).input("x", values)
    assert "another party that used the joint key" in alone["encrypted"][MODEL_OWNER]
    lied = dataclasses.replace(shown, joint=shown.joint[:-8] + bytes(8))
    with pytest.raises(IntegrityError, match="another joint key") as caught:
        Audit(found, lied).input("x", values)
    assert caught.value.culprit == OWNER


def test_who_commits_to_one_thing_and_encrypts_another(tmp_path, monkeypatch):
    honest, other = engage.commit, stage.rows(seed=9)[OWNER]["x"]

    def lying(private, session, run):
        brought = dict(private.inputs)
        private.inputs.update({"x": other} if brought else {})
        try:
            return honest(private, session, run)
        finally:
            private.inputs.update(brought)

    monkeypatch.setattr(engage, "commit", lying)
    base = stage.manifest(terms=TERMS)
    right(stage.play(base, receipts=tmp_path).run())
    found = compare([receipt.load(tmp_path / f"{name}.receipt") for name in base.names])
    with pytest.raises(IntegrityError, match="no encryption of these values") as caught:
        Audit(found, opening.load(tmp_path / f"{OWNER}.opening")).input("x", other)
    assert caught.value.culprit == OWNER


@pytest.mark.parametrize("moment", [("ready", 0), ("share", 0)])
def test_one_lost(tmp_path, moment):
    """It is in every receipt who was lost, and in what is left everything agrees."""
    base = stage.manifest(deadline=3.0, terms=TERMS)
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
