"""The DICOM door: pictures as a reader sees them, and no word of who is in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError, InputError
from privinfer.io import dicom
from privinfer.io.dicom import Dicom, window

pydicom = pytest.importorskip("pydicom")

DATA = Path(__file__).resolve().parents[1] / "data" / "doors"
FILE = DATA / "chest_64.dcm"
STORED = np.loadtxt(DATA / "chest_64_stored.csv", delimiter=",")
SECRETS = ("SECRET", "19010203")


@pytest.fixture
def changed(tmp_path):
    """Write the picture with other tags; returns its path."""

    def write(compress: str | None = None, **tags: Any) -> Path:
        data = pydicom.dcmread(FILE)
        for key, value in tags.items():
            setattr(data, key, value)
        if compress is not None:
            data.compress(compress)
        path = tmp_path / "scan.dcm"
        data.save_as(path)
        return path

    return write


def read(path: Path, **settings: Any) -> np.ndarray:
    return Dicom(**settings).read(path).values[0]


def test_stored_values_and_window() -> None:
    assert np.array_equal(read(FILE, window="bits"), STORED / 255)
    # the file's window: centre 128, width 256, so 0.5 is 127.5
    assert np.allclose(read(FILE), np.clip((STORED - 127.5) / 255 + 0.5, 0, 1), atol=1e-15)


@settings(max_examples=40)
@given(
    st.sampled_from(("LINEAR", "LINEAR_EXACT", "SIGMOID")),
    st.floats(-3000, 3000),
    st.floats(2, 5000),
)
def test_windows_agree_with_pydicom(function: str, centre: float, width: float) -> None:
    data = pydicom.Dataset()
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = (f"{centre:.6g}", f"{width:.6g}", function)
    data.BitsStored, data.PixelRepresentation = 16, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    x = np.linspace(0, 65535, 97)
    theirs = pydicom.pixels.apply_windowing(x, data) / 65535
    ours = window(x, float(data.WindowCenter), float(data.WindowWidth), function)
    assert np.allclose(ours, theirs, atol=1e-9)


def test_low_is_white_in_monochrome1(changed) -> None:
    assert np.array_equal(read(changed(PhotometricInterpretation="MONOCHROME1")), 1 - read(FILE))


def test_rescale_and_a_declared_window(changed) -> None:
    path = changed(RescaleSlope="2.5", RescaleIntercept="-100")
    x = STORED * 2.5 - 100
    assert np.array_equal(read(path, window=(200.0, 301.0)), np.clip((x - 199.5) / 300 + 0.5, 0, 1))
    assert np.allclose(read(path, window="bits"), STORED / 255, atol=1e-15)
    falling = changed(RescaleSlope="-1", RescaleIntercept="255")
    assert np.array_equal(read(falling, window="bits"), (255 - STORED) / 255)


def test_sixteen_bits_signed(changed) -> None:
    pixels = (STORED * 100 - 9000).astype(np.int16)
    path = changed(
        PixelData=pixels.tobytes(), BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=1
    )
    assert np.array_equal(read(path, window="bits"), (pixels + 32768.0) / 65535)


@pytest.mark.parametrize("words", [False, True])
def test_a_voi_lut_comes_before_a_window(changed, words: bool) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [200, 10, 8]
    entries = np.arange(199, -1, -1, "<u2" if words else "u1")
    table.LUTData = entries.tobytes()
    expected = entries[np.clip(STORED.astype(int) - 10, 0, 199)] / 255
    assert np.array_equal(read(changed(VOILUTSequence=[table])), expected)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelAspectRatio": 2},
        {"PixelAspectRatio": [1, 2]},
        {"PatientOrientation": "LF"},
        {"NumberOfFrames": 2},
        {"BurnedInAnnotation": "YES"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"SamplesPerPixel": 3},
        {"BitsStored": 7},
        {"HighBit": 3},
        {"Rows": 0},
        {"Rows": 65},
        {"RescaleSlope": 0},
        {"WindowWidth": 0},
        {"VOILUTFunction": "CURVED"},
    ],
    ids=str,
)
def test_pictures_of_another_kind_are_refused(changed, tags: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^scan\.dcm"):
        read(changed(**tags))


def test_a_modality_lut_in_place_of_a_slope(changed) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (np.arange(256, dtype="<u2") * 200).tobytes()
    found = read(changed(ModalityLUTSequence=[table]), window=(20000.5, 40001.0))
    assert np.allclose(found, np.clip(STORED * 200 / 40000, 0, 1), atol=1e-12)
    with pytest.raises(InputError, match="whose range its bits do not say"):
        read(changed(ModalityLUTSequence=[table]), window="bits")


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        ("1.2.840.10008.1.2.5", "pydicom"),
        ("1.2.840.10008.1.2.4.90", "openjpeg"),
        ("1.2.840.10008.1.2.4.80", "jpeg_ls"),
    ],
)
def test_lossless_transfer_syntaxes(changed, syntax: str, package: str) -> None:
    pytest.importorskip(package)
    path = changed(compress=syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read(path, window="bits"), STORED / 255)


def test_jpeg_baseline_of_one_grey(changed) -> None:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(np.full((64, 64), 77, np.uint8)).save(file, "JPEG", quality=95)
    path = changed(PixelData=pydicom.encaps.encapsulate([file.getvalue()]))
    data = pydicom.dcmread(path)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    data.save_as(path)
    assert np.abs(read(path, window="bits") - 77 / 255).max() <= 1 / 255  # one step of a lossy codec


@pytest.mark.parametrize(
    ("syntax", "module", "package"),
    [
        ("1.2.840.10008.1.2.4.90", "openjpeg", "pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.80", "jpeg_ls", "pyjpegls"),
        ("1.2.840.10008.1.2.4.70", "libjpeg", "pylibjpeg-libjpeg"),
    ],
)
def test_a_missing_decoder_is_named(changed, monkeypatch, syntax: str, module: str, package: str) -> None:
    path = changed()
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    monkeypatch.setattr(dicom, "_open", lambda _: data)
    monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None if name == module else name)
    with pytest.raises(ConfigError, match=f"needs {package}, which is not installed") as refused:
        Dicom().read(path)
    assert ("GPL" in str(refused.value.hint)) == (package == "pylibjpeg-libjpeg")


def test_overlays_in_the_bits_above_are_dropped(changed) -> None:
    pixels = STORED.astype(np.uint16) | np.uint16(1 << 15)
    path = changed(PixelData=pixels.tobytes(), BitsAllocated=16, BitsStored=10, HighBit=9)
    assert np.array_equal(read(path, window="bits"), STORED / 1023)


def test_orientation(changed) -> None:
    upright = read(FILE)
    assert np.array_equal(read(changed(PatientOrientation=["L", "F"])), upright)
    assert np.array_equal(read(changed(PatientOrientation=["R", "F"])), upright[:, ::-1])
    assert np.array_equal(read(changed(PatientOrientation=["L", "H"])), upright[::-1])
    path = changed(PatientOrientation=["F", "L"])
    with pytest.raises(InputError, match="lies on its side"):
        read(path)
    assert np.array_equal(read(path, orientation="any"), upright)


def test_area_is_the_mean_of_what_is_covered() -> None:
    x = read(FILE)
    assert np.allclose(read(FILE, size=(16, 32)), x.reshape(16, 4, 32, 2).mean((1, 3)), atol=1e-12)
    # 64 rows on 3: a third covers 21 and a third of the next
    first = (x[:21].sum(0) + x[21] / 3) / (64 / 3)
    assert np.allclose(read(FILE, size=(3, 64))[0], first, atol=1e-12)


def test_bilinear_takes_half_pixel_centres() -> None:
    x = read(FILE)
    halved = x.reshape(32, 2, 32, 2).mean((1, 3))
    assert np.allclose(read(FILE, size=(32, 32), resize="bilinear"), halved, atol=1e-12)
    twice = read(FILE, size=(128, 64), resize="bilinear")
    assert np.allclose(twice[1], 0.75 * x[0] + 0.25 * x[1], atol=1e-12)
    assert np.array_equal(read(FILE, size=(64, 64), resize="bilinear"), x)


def test_cropping_takes_the_middle() -> None:
    assert np.array_equal(read(FILE, size=(32, 64), fit="crop"), read(FILE)[16:48])


def test_a_folder_and_a_channel(tmp_path) -> None:
    for name in ("b.dcm", "a.dcm"):
        (tmp_path / name).write_bytes(FILE.read_bytes())
    (tmp_path / "note.txt").write_text("no picture")
    record = Dicom(channel=True, size=(8, 8)).read(tmp_path)
    assert record.values.shape == (2, 1, 8, 8)
    assert (record.names, record.low, record.high) == (("grey",), 0.0, 1.0)


@pytest.mark.parametrize("cut", [100, 700, 3000, 4500])
def test_nothing_names_the_patient(tmp_path, capfd, cut: int) -> None:
    """Not the record, not the error of a damaged file, and nothing on the terminal."""
    assert b"SECRET" in FILE.read_bytes()
    (tmp_path / "cut.dcm").write_bytes(FILE.read_bytes()[:cut])
    with pytest.raises(InputError) as refused:
        Dicom().read(tmp_path / "cut.dcm")
    chain = [refused.value, refused.value.__context__]
    record = Dicom().read(FILE)
    shown = [f"{record!r} {record}", *capfd.readouterr(), str(refused.value), str(refused.value.hint)]
    assert not any(secret in text for secret in SECRETS for text in shown)
    assert chain[0].__suppress_context__ or chain[1] is None
    with dicom._quiet():
        assert not {"PatientName", "PatientID", "PatientBirthDate"} & set(dicom._open(FILE).dir())


@settings(max_examples=30)
@given(st.binary(min_size=1, max_size=64), st.integers(132, 900))
def test_damage_is_an_error_of_ours_and_nothing_else(tmp_path_factory, damage: bytes, at: int) -> None:
    data = bytearray(FILE.read_bytes())
    data[at : at + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(data)
    said = ""
    try:
        record = Dicom().read(path)
        assert (record.values.min() >= 0, record.values.max() <= 1) == (True, True)
    except (InputError, ConfigError) as e:
        said = str(e)
    assert not any(secret in said for secret in SECRETS)
