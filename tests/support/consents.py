"""A session on the stage that asks for the patient's consent, and what tests of it share."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from typing import Any

from privinfer.protocols.commitment import Opening, digest_of_weights
from privinfer.runtime.uses import Uses
from privinfer.session import Manifest
from privinfer.session.consent import Consent, Revocation, for_session
from privinfer.session.terms import Terms
from tests.adversarial import stage

PURPOSE = "risk of lung disease"
OWNERS = ("hospital", "dna_company", "laboratory")
PATIENT = "patient"


@functools.cache
def opening() -> Opening:
    """The model owner's."""
    return Opening.fresh(digest_of_weights(stage.model()))


def weights() -> str:
    """Commitment to the stage's weights."""
    model = stage.model()
    return opening().commit("weights", digest_of_weights(model), model.architecture.digest()).hex()


def session(**changes: Any) -> Manifest:
    """A session file with terms.consent."""
    terms = Terms(purpose=PURPOSE, consent=PATIENT, weights=weights())
    return stage.manifest(**({"terms": terms} | changes))


def consent(**changes: Any) -> Consent:
    """A good consent to it, but for the changes."""
    hour = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    return dataclasses.replace(for_session(session(), hour), **changes)


def signed(one: Consent | Revocation) -> bytes:
    """As the patient signs it."""
    return one.sign(stage.identity(PATIENT))


def revocation(one: Consent, time: int = 1_800_000_000) -> Revocation:
    """Of a consent."""
    return Revocation(one.id, one.patient, one.certificate, time)


def ledgers(folder: Any, names: tuple[str, ...] = OWNERS) -> dict[str, Uses]:
    """A ledger for each owner."""
    return {name: Uses(folder / f"uses-{name}", name) for name in names}


def play(folder: Any, *brings: Any, **changes: Any) -> stage.Play:
    """That session over memory; one run for each consent brought: bytes, or arguments of `Party.run`."""
    given = [{"consent": one} if isinstance(one, bytes) else one for one in brings]
    fields = {
        "base": session(),
        "openings": {stage.E1: opening()},
        "uses": ledgers(folder),
        "consents": given,
        "runs": len(given),
    }
    return stage.Play(**(fields | changes))
