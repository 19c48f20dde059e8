"""Terms of a session: what stands in the file comes back, what makes no sense is refused by name."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privinfer.errors import ConfigError
from privinfer.session import Manifest
from privinfer.session.terms import Release, Terms
from tests.adversarial import stage

NOISE = {"epsilon": 1.0, "delta": 1e-6, "sensitivity": 0.5, "epsilon_budget": 4.0, "delta_budget": 1e-5}

PURPOSES = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=40
).filter(str.isprintable)


@given(
    PURPOSES,
    st.none() | st.datetimes(dt.datetime(2027, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)),
    st.none() | st.sampled_from(stage.NAMES),
    st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.booleans(),
    st.none() | st.integers(0, 12),
    st.booleans(),
)
def test_a_file_gives_the_terms_back(
    purpose: str, expires: Any, consent: Any, weights: Any, receipts: bool, decimals: Any, noisy: bool
) -> None:
    weights = weights or ("0" * 64 if consent else None)  # a consent names them
    release = Release(decimals=decimals, **(NOISE if noisy else {}))
    terms = Terms(purpose, expires, consent, weights, receipts, release)
    manifest = stage.manifest(terms=terms)
    assert Manifest.loads(manifest.raw) == manifest
    assert Manifest.loads(manifest.raw).terms == terms


def test_a_session_without_terms_keeps_its_bytes() -> None:
    assert "[terms" not in stage.manifest().dumps()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("purpose = 3", "terms.purpose is not a string"),
        ('purpose = "a\\nb"', "one line"),
        (f'purpose = "{"x" * 201}"', "at most 200"),
        ("expires = 2027-01-01", "terms.expires is not a time with its zone"),
        ("expires = 2027-01-01T00:00:00", "terms.expires is not a time with its zone"),
        ('consent = "patient"', "terms.purpose is missing"),
        ('purpose = "care"\nconsent = "nobody"', "terms.consent names a party that is not listed"),
        ('purpose = "care"\nconsent = "patient"', "terms.weights is missing"),
        ('weights = "AB"', "terms.weights"),
        ("receipts = 1", "neither true nor false"),
        ("colour = 1", "terms.colour is not a known key"),
        ("release = 1", "terms.release is not a table"),
        ("[terms.release]\ndecimals = 13", "decimals is not in 0..12"),
        ("[terms.release]\nanswers = 0", "answers is not in"),
        ("[terms.release]\nhours = 1e6", "hours must lie"),
        ("[terms.release]\ndelta = 1e-6", "epsilon is missing"),
        ("[terms.release]\nepsilon = 1e3", "epsilon is not in"),
        ("[terms.release]\nepsilon = 1.0", "delta must lie"),
        ("[terms.release]\nepsilon = 1.0\ndelta = 1e-6", "sensitivity must lie"),
        ("[terms.release]\nepsilon = 1.0\ndelta = 1e-6\nsensitivity = 1.0", "below what one answer costs"),
        ("[terms.release]\nflavour = 1.0", "terms.release.flavour is not a known key"),
    ],
)
def test_bad_terms(text: str, message: str) -> None:
    raw = stage.manifest().raw + b"\n"
    first, rest = raw.split(b"[roles]", 1)
    with pytest.raises(ConfigError, match=message):
        Manifest.loads(first + b"[terms]\n" + text.encode() + b"\n\n[roles]" + rest)


def test_expiry() -> None:
    terms = Terms(expires=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    terms.check_time(dt.datetime(2025, 12, 31, tzinfo=dt.UTC))
    with pytest.raises(ConfigError, match="expired at 2026-01-01"):
        terms.check_time()
