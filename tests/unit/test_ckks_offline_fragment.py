"""A fragment of an owner who is not there: moved by its custodian with the published key, then evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from privinfer.backends.ckks import fragments
from privinfer.backends.ckks.cipher import Ciphertext
from privinfer.backends.ckks.evaluate import Evaluation, EvaluationKeys
from privinfer.backends.ckks.plan import make_plan
from privinfer.errors import ConsentError, IntegrityError
from privinfer.protocols.ckks import noise, rekey, smudging
from privinfer.protocols.ckks.keys import OwnKey
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.rekey import OfflineKey
from tests.adversarial import stage
from tests.support import ckks_session as small
from tests.support.ckks_oracle import TAIL, Oracle

HOLDERS = 3
CONSENT = b"c" * 32


def test_a_fragment_of_an_absent_owner_gives_the_right_answer(tmp_path: Path) -> None:
    plan = make_plan(small.model().architecture, HOLDERS, HOLDERS)
    p, joint = plan.parameters, Oracle(plan.parameters, HOLDERS)
    sources = {s.name: s for s in plan.inputs}
    inputs = small.rows()
    flat = {name: own[name][0] for own in inputs.values() for name in own}

    # the owner, once, long ago; then, knowing the joint key and having agreed
    owner, key, file = stage.identity("hospital"), tmp_path / "hospital.ckks", tmp_path / "xray.fragment"
    fragments.make_key(key, owner, Parameters(p.n, 7))
    own = fragments.open_key(key, owner)
    fragments.encrypt(file, owner, own.public, "xray", flat["xray"], (-1.0, 1.0))
    published = fragments.publish(key, owner, own, joint.public, CONSENT).to_bytes()

    # the custodian, which is the model owner: all it has is public
    offline = OfflineKey.parse(p, published, "hospital")
    found = fragments.load(file, owner.public, p, name="xray", shape=(1, 4, 4), bounds=(-1.0, 1.0))
    xray = sources["xray"]
    assert found.layout.same(xray.layout)
    at_rest = np.ascontiguousarray(found.data[0][:, : xray.level])
    with pytest.raises(ConsentError):
        rekey.apply(p, offline, joint.public, b"d" * 32, at_rest)
    with pytest.raises(IntegrityError, match="another joint key"):
        rekey.apply(p, offline, OwnKey.fresh(p).public, CONSENT, at_rest)
    moved = rekey.apply(p, offline, joint.public, CONSENT, at_rest)

    rows = {
        name: [[joint.encrypt(v, s.level) for v in s.layout.pack(flat[name].reshape(-1))]]
        for name, s in sources.items()
    }
    rows["xray"] = [[Ciphertext(moved, xray.scale)]]
    galois = joint.at(plan.linear_levels).galois(plan.rotations)
    evaluation = Evaluation(plan, small.model(), EvaluationKeys(joint.public, joint.relinearisation, galois))
    with pytest.raises(StopIteration) as end:  # no refreshes in this plan
        next(evaluation.run(rows))
    result = end.value.value["risk"][0][0]
    (opened,) = plan.outputs
    risk = opened.layout.unpack(joint.decrypt(result).real[None])

    brought = np.hypot(noise.fresh(p, 1), noise.rekey_offline(p, HOLDERS, xray.level))
    (outlook,) = evaluation.outlook({"xray": float(brought)})
    declared = TAIL * noise.slot_std(p, outlook.noise_std)
    assert declared < 1e-5
    # a sum of 2^13 uniform errors: Gaussian, beyond ten deviations never
    smudged = 10 * smudging.slot_error(p, opened.smudging.bits, 1)  # the evaluator's alone
    assert np.abs(risk - small.wanted(inputs)[0]).max() < declared + smudged
