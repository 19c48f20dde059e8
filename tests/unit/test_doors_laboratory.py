"""Laboratory doors: units convert exactly or are refused; tables and bundles say the same."""

from __future__ import annotations

import contextlib
import csv
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError, InputError
from privinfer.io import units
from privinfer.io.fhir import Fhir, Lab
from privinfer.io.quantities import Quantity
from privinfer.io.tables import Table

DATA = Path(__file__).resolve().parents[1] / "data" / "doors"
BUNDLE = DATA / "lesley.json"

# UCUM code, and how pint writes it
PINT = {
    **{"g/L": "g/L", "mg/dL": "mg/dL", "ng/mL": "ng/mL", "ug/L": "ug/L", "kg/m3": "kg/m^3", "g/dL": "g/dL"},
    **{"mmol/L": "mmol/L", "umol/L": "umol/L", "nmol/mL": "nmol/mL", "mol/m3": "mol/m^3"},
    **{"10*3/uL": "1e3/uL", "10*9/L": "1e9/L", "10*6/mL": "1e6/mL", "/uL": "1/uL"},
    **{"fL": "fL", "um3": "um^3", "pL": "pL", "L": "L", "dL": "dL"},
    **{"pg": "pg", "ng": "ng", "kg": "kg", "%": "percent", "1": "dimensionless", "10*-2": "1e-2"},
    **{"mm[Hg]": "mmHg", "kPa": "kPa", "U/L": "umol/min/L", "ukat/L": "umol/s/L", "nkat/mL": "nmol/s/mL"},
    **{"mL/min": "mL/min", "L/h": "L/hour", "mL/s": "mL/s", "d": "day", "h": "hour", "a": "julian_year"},
}


def test_factors_agree_with_pint() -> None:
    pint = pytest.importorskip("pint")
    registry = pint.UnitRegistry()
    base = {}
    for code, theirs in PINT.items():
        quantity = registry.Quantity(registry(theirs)).to_base_units()
        base[code] = (quantity.magnitude, str(quantity.dimensionality))
    compared = 0
    for source, (given_factor, given_dimension) in base.items():
        for target, (factor, dimension) in base.items():
            if given_dimension == dimension:
                # mmHg is 133.322 Pa in UCUM, and 133.322387... in pint
                rel = 1e-5 if "mm[Hg]" in (source, target) else 1e-12
                assert float(units.factor(source, target)) == pytest.approx(given_factor / factor, rel=rel)
                compared += source != target
            else:
                with pytest.raises(InputError):
                    units.factor(source, target)
    assert compared > 60


@given(st.sampled_from(sorted(PINT)), st.sampled_from(sorted(PINT)))
def test_there_and_back_is_exact(source: str, target: str) -> None:
    try:
        there = units.factor(source, target)
    except InputError:
        return
    assert there * units.factor(target, source) == 1


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("[iU]/L", "U/L"),  # arbitrary units are nobody else's
        ("mL/min", "mL/min/{1.73_m2}"),
        ("{cells}/uL", "/uL"),
        ("mmol/L", "meq/L"),  # charges
        ("Cel", "1"),
        ("%", "g/L"),
        ("mg/dL", "mmol/L"),
        ("mg/dl", "mg/DL"),
    ],
)
def test_nothing_is_guessed(source: str, target: str) -> None:
    with pytest.raises(InputError):
        units.factor(source, target)


@pytest.mark.parametrize(
    "code",
    ["", "mg per dL", "mg//dL", "mg/", "MG", "kmin", "0", "10*999", "m{", "{a", "é", "m" * 81, ".", "/"],
)
def test_what_is_no_unit(code: str) -> None:
    with pytest.raises(InputError):
        units.parse(code)


@given(st.text(max_size=30))
def test_any_text_is_a_unit_or_an_input_error(code: str) -> None:
    with contextlib.suppress(InputError):
        assert units.parse(code).factor > 0


def test_mass_becomes_substance_with_a_molar_mass_only() -> None:
    glucose = Fraction("180.156")
    assert units.factor("mg/dL", "mmol/L", glucose) == Fraction(10) / glucose
    assert units.factor("mmol/L", "mg/dL", glucose) == glucose / 10
    assert units.factor("ug/dL", "umol/L", Fraction("113.12")) == Fraction(10) / Fraction("113.12")


# -- FHIR ------------------------------------------------------------------------------------------


def lab(code: str, unit: str, **settings) -> Lab:
    return Lab(Quantity(**{"name": code, "unit": unit, "low": 0, "high": 1e6, **settings}), (code,))


def bundle(tmp_path: Path, *results: dict) -> Path:
    path = tmp_path / "bundle.json"
    entries = [{"resource": {"resourceType": "Patient", "id": "p"}}, *({"resource": r} for r in results)]
    path.write_text(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}))
    return path


def result(value=5.0, unit="mmol/L", time="2020-01-01T00:00:00Z", code="2345-7", **other) -> dict:
    return {
        "resourceType": "Observation",
        "status": "final",
        "category": [{"coding": [{"code": "laboratory"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": "Patient/p"},
        "effectiveDateTime": time,
        "valueQuantity": {"value": value, "unit": "x", "system": "http://unitsofmeasure.org", "code": unit},
        **other,
    }


def test_a_synthetic_patient() -> None:
    with (DATA / "lesley_expected.csv").open() as file:
        expected = list(csv.DictReader(file))
    door = Fhir(tuple(lab(row["loinc"], row["unit"]) for row in expected))
    record = door.read(BUNDLE)
    assert record.values.tolist() == [[float(row["value"]) for row in expected]]
    assert record.units == tuple(row["unit"] for row in expected)
    assert not record.notes
    haemoglobin = Fhir((lab("718-7", "g/L"),)).read(BUNDLE)
    assert haemoglobin.values.tolist() == [[130.8]]  # 13.08 g/dL, with no digit more
    assert "Lesley" not in repr(record) + str(door.declaration())


def test_the_latest_instant_counts_and_on_a_tie_the_later_entry(tmp_path) -> None:
    path = bundle(
        tmp_path,
        result(1, time="2020-01-01T10:00:00+02:00"),
        result(2, time="2020-01-01T09:30:00Z"),
        result(3, time="2020-01-01T11:30:00+02:00"),
        result(4, time="2019-01-01T11:30:00+02:00"),
        result(5, time="2021-01-01T00:00:00Z", status="entered-in-error"),
        result(6, time="2021-01-01T00:00:00Z", category=[{"coding": [{"code": "vital-signs"}]}]),
    )
    assert Fhir((lab("2345-7", "mmol/L"),)).read(path).values.tolist() == [[3]]


def test_several_codes_of_one_quantity_in_several_units(tmp_path) -> None:
    glucose = Quantity("glucose", "mmol/L", 0, 50, molar_mass="180.156")
    path = bundle(tmp_path, result(90.078, "mg/dL", code="2339-0"))
    record = Fhir((Lab(glucose, ("2345-7", "2339-0")),)).read(path)
    assert record.values.tolist() == [[5.0]]
    assert record.notes == {"converted": 1}


@settings(max_examples=20)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_strange_bundles_are_input_errors(tmp_path_factory, junk) -> None:
    path = tmp_path_factory.getbasetemp() / "bundle.json"
    strange = dict.fromkeys(("category", "code", "subject", "effectiveDateTime", "valueQuantity"), junk)
    for entry in (
        junk,
        {"resource": junk},
        {"resource": {"resourceType": "Observation", "status": "final", **strange}},
    ):
        path.write_text(json.dumps({"resourceType": "Bundle", "entry": [entry]}))
        with pytest.raises(InputError, match="has no '2345-7'"):
            Fhir((lab("2345-7", "mmol/L"),)).read(path)


def test_a_folder_of_bundles(tmp_path) -> None:
    for name in ("b.json", "a.json"):
        (tmp_path / name).write_bytes(BUNDLE.read_bytes())
    assert Fhir((lab("718-7", "g/dL"),)).read(tmp_path).values.shape == (2, 1)


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_of_blood_donors() -> None:
    door = Table(
        (
            Quantity("albumin_g_l", "g/L", 10, 80, center=40, scale=5),
            Quantity("sex", categories={"male": 0, "female": 1}),
        ),
        identifier="row_id",
    )
    record = door.read(DATA / "hcv_liver_20.csv")
    assert record.values.shape == (20, 2)
    assert record.values[0].tolist() == [(38.5 - 40) / 5, 0]
    assert (record.units, record.low, record.high) == (("1", "1"), -6, 8)
    assert door.read(DATA / "hcv_liver_20.csv", "hcv002").values[0].tolist() == [(46.9 - 40) / 5, 0]


def test_units_in_the_header_convert(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("albumin [g/dL],enzyme [[iU]/L]\n4.1,7\n,8\n")
    quantities = (Quantity("albumin", "g/L", 0, 90, missing=40), Quantity("enzyme", "[iU]/L", 0, 100))
    record = Table(quantities).read(path)
    assert record.values.tolist() == [[41, 7], [40, 8]]
    assert record.notes == {"converted": 2 - 1, "filled": 1}


def test_parquet_says_what_csv_says(tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    schema = arrow.schema(
        [
            arrow.field("albumin", arrow.float64(), metadata={"unit": "g/dL"}),
            arrow.field("sex", arrow.string()),
        ]
    )
    table = arrow.table({"albumin": [4.1, None], "sex": ["male", "female"]}, schema=schema)
    parquet.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("albumin [g/dL],sex\n4.1,male\n,female\n")
    door = Table(
        (Quantity("albumin", "g/L", 0, 90, missing=40), Quantity("sex", categories={"male": 0, "female": 1}))
    )
    assert door.read(tmp_path / "t.parquet").values.tolist() == [[41, 0], [40, 1]]
    assert np.array_equal(door.read(tmp_path / "t.csv").values, door.read(tmp_path / "t.parquet").values)


@given(st.text(max_size=12))
def test_a_cell_is_a_number_or_an_input_error(text: str) -> None:
    notes: dict[str, int] = {}
    try:
        value = Quantity("x", "1", -10, 10, outside="clip").take(text, None, "t", notes)
    except InputError:
        assert not notes
    else:
        assert -10 <= value <= 10
        assert float(text) == value or notes == {"clipped": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "mg per dL"}, "unknown"),
        ({"low": 2}, "low must lie below high"),
        ({"scale": 0}, "scale above 0"),
        ({"missing": 7}, "missing lies outside"),
        ({"outside": "guess"}, "outside is not one of"),
        ({"categories": {"a": 3}}, "category lies outside"),
        ({"molar_mass": "heavy"}, "molar_mass is not a number"),
        ({"name": ""}, "unprintable name"),
    ],
)
def test_quantities_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantity(**{"name": "x", **settings})
