"""DICOM radiographs to pictures in 0..1, black low, as a reader would see them.

Only the tags below are parsed: what names a person is never taken from a file, and no message, repr or result
holds a value of the file's. (Text burned into a picture cannot be seen from here: files that declare some are
refused.) Source: DICOM PS3.3 C.7.6.3, C.11.1, C.11.2.1.2.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from privinfer.errors import ConfigError, InputError, PrivinferError
from privinfer.io.door import Array, Record, gone, need
from privinfer.session import canonical

MAX_BYTES: Final = 512 << 20
MAX_PIXELS: Final = 1 << 26
TAGS: Final = (
    *("Modality", "BodyPartExamined", "ViewPosition", "PatientOrientation", "BurnedInAnnotation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("PixelAspectRatio", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
_OPENJPEG = ("openjpeg", "pylibjpeg-openjpeg", "pip install 'privinfer[dicom]'")
_CHARLS = ("jpeg_ls", "pyjpegls", "pip install 'privinfer[dicom]'")
_PILLOW = ("PIL", "Pillow", "pip install 'privinfer[dicom]'")
# no part of the extra: its decoder is under the GPL, and whoever installs it decides that
_LIBJPEG = (
    "libjpeg",
    "pylibjpeg-libjpeg",
    "pip install pylibjpeg-libjpeg: GPL 3, so it is not part of privinfer[dicom]",
)
# transfer syntax: module, package and hint; None: needs no decoder beyond pydicom
DECODERS: Final[dict[str, tuple[str, str, str] | None]] = {
    **dict.fromkeys(("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"), None),
    **dict.fromkeys(("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"), None),  # deflated, RLE
    "1.2.840.10008.1.2.4.50": _PILLOW,  # JPEG baseline, 8 bits
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (51, 57, 70)), _LIBJPEG),  # 12 bits; lossless
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)), _CHARLS),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)), _OPENJPEG),
}


@dataclass(frozen=True, slots=True)
class Dicom:
    """Door for radiographs.

    Attributes
    ----------
    size : (int, int) or ()
        Rows and columns of the result; () keeps the file's.
    resize : str
        ``area`` (mean over the covered area) or ``bilinear`` (half-pixel centres, no smoothing before).
    fit : str
        ``stretch`` to the size, or ``crop`` the middle to its proportions first.
    window : str or (float, float)
        ``file``: the file's VOI LUT or first window; ``bits``: all that the stored bits can hold; or centre
        and width in rescaled units, the same for every file.
    modalities, body_parts, views : tuple of str
        What is admitted; () admits everything, and a file that does not say is refused otherwise.
    orientation : str
        ``upright``: a file whose rows run to the patient's right or columns to the head is turned over, one
        that lies on its side is refused, one that does not say is taken as it is; ``any``: as stored.
    burned_in : str
        ``refuse`` or ``accept`` pictures that declare names burned into them.
    channel : bool
        Shape (rows, 1, H, W) in place of (rows, H, W).
    """

    kind: ClassVar[str] = "dicom"

    size: tuple[int, ...] = ()
    resize: str = "area"
    fit: str = "stretch"
    window: str | tuple[float, ...] = "file"
    modalities: tuple[str, ...] = ("CR", "DX")
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    orientation: str = "upright"
    burned_in: str = "refuse"
    channel: bool = False

    def __post_init__(self) -> None:
        if self.size and (
            len(self.size) != 2 or not all(isinstance(n, int) and 0 < n <= 8192 for n in self.size)
        ):
            raise ConfigError("size of a dicom door is not [rows, columns]")
        if not all(isinstance(v, str) for v in (*self.modalities, *self.body_parts, *self.views)):
            raise ConfigError("modalities, body_parts and views of a dicom door are words")
        choices = {
            "resize": ("area", "bilinear"),
            "fit": ("stretch", "crop"),
            "orientation": ("upright", "any"),
            "burned_in": ("refuse", "accept"),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"{key} of a dicom door is none of {', '.join(known)}")
        if isinstance(self.window, str):
            if self.window not in ("file", "bits"):
                raise ConfigError("window of a dicom door is none of file, bits and [centre, width]")
        elif len(self.window) != 2 or not all(map(math.isfinite, self.window)) or self.window[1] < 1:
            raise ConfigError(
                "window of a dicom door is not [centre, width] with a width of 1 or more",
                hint='[2048, 4096], in rescaled units; or "file", or "bits"',
            )

    def declaration(self) -> dict[str, canonical.Value]:
        """What the door does, in plain values."""
        return {
            "door": self.kind,
            "version": 1,
            "size": list(self.size),
            "resize": self.resize,
            "fit": self.fit,
            "window": self.window if isinstance(self.window, str) else [float(v) for v in self.window],
            "modalities": list(self.modalities),
            "body_parts": list(self.body_parts),
            "views": list(self.views),
            "orientation": self.orientation,
            "burned_in": self.burned_in,
            "channel": self.channel,
            "range": [0.0, 1.0],
            "polarity": "MONOCHROME2",
        }

    def read(self, path: str | os.PathLike[str], row: str | None = None) -> Record:
        """Read a picture (one row), or a folder of ``.dcm`` files in the order of their names.

        Raises
        ------
        InputError
            No DICOM file, a picture of another kind, or pictures of different sizes.
        ConfigError
            pydicom or a decoder is missing; the message names it.
        """
        if row is not None:
            raise InputError("a DICOM file holds one picture", hint="leave out what follows the #")
        folder = Path(path)
        files = [folder]
        if folder.is_dir():
            files = sorted(f for f in folder.iterdir() if f.suffix.lower() in (".dcm", ".dicom"))
            if not files:
                raise InputError(f"{folder.name} holds no .dcm file")
        pictures = [self._picture(f) for f in files]
        if len({p.shape for p in pictures}) > 1:
            raise InputError("the pictures have different sizes", hint="set size in the door file")
        values = np.stack(pictures)
        return Record(values[:, None] if self.channel else values, ("grey",), ("1",), 0.0, 1.0)

    def _picture(self, file: Path) -> Array:
        with _quiet():
            data = _open(file)
            try:
                inverted, flips = self._check(data, file.name)
                stored = _decode(data, file.name)
                x = self._grey(_rescale(data, stored, file.name), data, file.name)
            except PrivinferError:
                raise
            except (
                Exception
            ):  # a tag of another form than the standard's; what Python says may hold its value
                raise InputError(f"{file.name} has a tag that cannot be read") from None
        if inverted:
            x = 1.0 - x
        for axis in flips:
            x = np.flip(x, axis)
        if self.size:
            if self.fit == "crop":
                x = _crop(x, self.size[0] / self.size[1])
            x = _weights(x.shape[0], self.size[0], self.resize) @ x
            x = x @ _weights(x.shape[1], self.size[1], self.resize).T
        return np.clip(x, 0.0, 1.0)  # the means of the resize may round beyond

    def _check(self, data: Any, name: str) -> tuple[bool, tuple[int, ...]]:
        """Refuse what is no such picture; returns whether low is white, and the axes to turn over."""
        for key, said, known in (
            ("modality", data.get("Modality"), self.modalities),
            ("body part", data.get("BodyPartExamined"), self.body_parts),
            ("view", data.get("ViewPosition"), self.views),
        ):
            if known and said not in known:
                raise InputError(
                    f"{name}: {key} is not {' or '.join(known)}",
                    hint="is it the right picture of the right study?",
                )
        if data.get("BurnedInAnnotation") == "YES" and self.burned_in == "refuse":
            raise InputError(
                f"{name} has text burned into the picture", hint="it may name the patient: cover it"
            )
        photometric = data.get("PhotometricInterpretation")
        if photometric not in ("MONOCHROME1", "MONOCHROME2") or data.get("SamplesPerPixel", 1) != 1:
            raise InputError(f"{name} is no grey picture", hint="MONOCHROME1 and MONOCHROME2 are read")
        if _whole(data, "NumberOfFrames", 1, name) != 1:
            raise InputError(f"{name} holds several frames", hint="export the one that is wanted")
        allocated, bits = (_whole(data, key, 0, name) for key in ("BitsAllocated", "BitsStored"))
        if (
            allocated not in (8, 16)
            or not 8 <= bits <= allocated
            or _whole(data, "HighBit", bits - 1, name) != bits - 1
        ):
            raise InputError(
                f"{name}: {bits} of {allocated} bits are not read", hint="8 to 16 bits are, packed low"
            )
        rows, columns = (_whole(data, key, 0, name) for key in ("Rows", "Columns"))
        if not 0 < rows * columns <= MAX_PIXELS or min(rows, columns) < 1:
            raise InputError(f"{name} has no or too many pixels")
        aspect = [float(v) for v in data.get("PixelAspectRatio") or (1, 1)]
        if len(aspect) != 2 or aspect[0] != aspect[1]:
            raise InputError(f"{name} has pixels that are not square")
        return photometric == "MONOCHROME1", self._flips(data, name)

    def _flips(self, data: Any, name: str) -> tuple[int, ...]:
        said = data.get("PatientOrientation")
        if self.orientation == "any" or not said:
            return ()
        # the first letter is the main direction: rows towards L(eft), columns towards F(eet)
        along, down = (str(v)[:1] for v in said) if not isinstance(said, str) and len(said) == 2 else ("", "")
        if along not in ("L", "R", "A", "P") or down not in ("F", "H"):
            raise InputError(
                f"{name} lies on its side", hint='turn it, or set orientation = "any" for all parties'
            )
        return (*((1,) if along == "R" else ()), *((0,) if down == "H" else ()))

    def _grey(self, x: Array, data: Any, name: str) -> Array:
        """Rescaled values to 0..1."""
        if self.window == "bits":
            if data.get("ModalityLUTSequence"):
                raise InputError(
                    f"{name} has a modality LUT, whose range its bits do not say",
                    hint='set window = [centre, width], or "file", in the door file',
                )
            ends = np.array(_ends(int(data.BitsStored), int(data.PixelRepresentation)), np.float64)
            low, high = np.sort(_rescale(data, ends, name))
            return np.asarray(np.clip((x - low) / (high - low), 0.0, 1.0))
        function = "LINEAR"
        if not isinstance(self.window, str):
            centre, width = self.window
        elif data.get("VOILUTSequence"):
            shown, bits = _look_up(x, data, "VOILUTSequence", name)
            return np.clip(shown / ((1 << bits) - 1), 0.0, 1.0)
        elif data.get("WindowCenter") is None or data.get("WindowWidth") is None:
            raise InputError(
                f"{name} says no window", hint='set window = "bits" or [centre, width] in the door file'
            )
        else:
            centre, width = (_first(data, key, name) for key in ("WindowCenter", "WindowWidth"))
            function = data.get("VOILUTFunction") or function
        if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < (
            1 if function == "LINEAR" else 1e-9
        ):
            raise InputError(f"{name} has a window that is none", hint="set window in the door file")
        seen = window(x, centre, width, function)
        if x.min() < x.max() and seen.min() == seen.max():
            raise InputError(
                f"{name}: the window shows one grey", hint="its centre and width do not fit the pixels"
            )
        return seen


def window(x: Array, centre: float, width: float, function: str) -> Array:
    """PS3.3 C.11.2.1.2 with y_min = 0 and y_max = 1."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # exp of much is infinity, and its reciprocal 0, as it should be
            return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (x - centre) / width)))
    if function == "LINEAR_EXACT":
        return np.clip((x - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (x > centre - 0.5).astype(np.float64)
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _open(file: Path) -> Any:
    pydicom = need("pydicom", "pydicom", "dicom")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{file.name} is larger than 512 MiB")
        data = pydicom.dcmread(file, specific_tags=list(TAGS))
        list(data.iterall())  # pydicom would convert each value when it is asked for, and fail then
        return data
    except FileNotFoundError:
        raise gone(file) from None
    except InputError:
        raise
    except Exception:  # a parser of foreign files raises what it likes, and its words may hold their values
        raise InputError(
            f"{file.name} is no DICOM file, or is cut off", hint="was it swapped with another input's file?"
        ) from None


def _decode(data: Any, name: str) -> Array:
    syntax = str(getattr(data.file_meta, "TransferSyntaxUID", ""))
    if syntax not in DECODERS:
        raise InputError(f"{name}: transfer syntax {_uid(syntax)} is not read", hint="export it uncompressed")
    wanted = DECODERS[syntax]
    if wanted is not None and (
        importlib.util.find_spec(wanted[0]) is None
        or (wanted in (_OPENJPEG, _LIBJPEG) and importlib.util.find_spec("pylibjpeg") is None)
    ):
        raise ConfigError(
            f"transfer syntax {syntax} needs {wanted[1]}, which is not installed", hint=wanted[2]
        )
    if "PixelData" not in data:
        raise InputError(f"{name} has no picture, or is cut off", hint="copy it again")
    try:
        stored = np.asarray(data.pixel_array)
    except Exception:  # as above
        raise InputError(f"{name}: the picture cannot be decoded", hint="it is cut off or damaged") from None
    if stored.shape != (int(data.Rows), int(data.Columns)):
        raise InputError(f"{name}: the picture is not of the declared size")
    return stored.astype(np.float64)


def _ends(bits: int, signed: int) -> tuple[int, int]:
    """Least and largest stored value."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _rescale(data: Any, stored: Array, name: str) -> Array:
    if data.get("ModalityLUTSequence"):
        return _look_up(stored, data, "ModalityLUTSequence", name)[0]
    slope = _first(data, "RescaleSlope", name, 1.0)
    if slope == 0:
        raise InputError(f"{name} has a rescale slope of zero")
    return stored * slope + _first(data, "RescaleIntercept", name, 0.0)


def _look_up(x: Array, data: Any, key: str, name: str) -> tuple[Array, int]:
    """The first table of a sequence, applied; and its bits.

    By hand: pydicom 3 subtracts in the table's own integers, and values beyond a table of 8 bits wrap around.
    """
    try:
        item = data[key][0]
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        raw = item.LUTData
        little = data.file_meta.TransferSyntaxUID.is_little_endian
        if isinstance(raw, bytes):  # entries of 8 bits may fill bytes or words
            narrow = len(raw) < 2 * (count or 1 << 16)
            raw = np.frombuffer(raw, "u1" if narrow else "<u2" if little else ">u2")
        table = np.asarray(raw, np.float64)[: count or 1 << 16]
        if len(table) != (count or 1 << 16) or not 8 <= bits <= 16 or table.min() < 0:
            raise ValueError
    except Exception:  # lazily parsed: anything may be raised here
        raise InputError(f"{name} has a lookup table that cannot be read") from None
    if first >= 1 << 15 and int(data.PixelRepresentation):
        first -= 1 << 16  # a signed number that was written as an unsigned one
    return table[np.clip(np.rint(x) - first, 0, len(table) - 1).astype(np.int64)], bits


def _first(data: Any, key: str, name: str, default: float | None = None) -> float:
    value = data.get(key)
    if value is None and default is not None:
        return default
    try:
        found = float(value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value)
    except (TypeError, ValueError, IndexError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{name}: {key} is no number")
    return found


def _whole(data: Any, key: str, default: int, name: str) -> int:
    try:
        value = data.get(key)
        return default if value is None else int(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {key} is no number") from None


def _crop(x: Array, proportion: float) -> Array:
    """The middle of a picture with rows / columns as near to `proportion` as whole pixels go."""
    rows = min(x.shape[0], max(1, round(x.shape[1] * proportion)))
    columns = min(x.shape[1], max(1, round(x.shape[0] / proportion)))
    top, left = (x.shape[0] - rows) // 2, (x.shape[1] - columns) // 2
    return x[top : top + rows, left : left + columns]


def _weights(source: int, target: int, how: str) -> Array:
    """(target, source): rows sum to 1."""
    if how == "area":
        edges = np.arange(target + 1) * (source / target)
        cells = np.arange(source)
        low, high = edges[:-1, None], edges[1:, None]
        covered = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0.0, None)
        return np.asarray(covered / covered.sum(axis=1, keepdims=True))
    at = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    left = np.minimum(np.floor(at).astype(int), max(source - 2, 0))
    found = np.zeros((target, source))
    found[np.arange(target), left] = 1 - (at - left)
    found[np.arange(target), np.minimum(left + 1, source - 1)] += at - left
    return found


def _uid(text: str) -> str:
    return text if text and len(text) <= 64 and set(text) <= set("0123456789.") else "of an unknown kind"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom and its decoders from printing what they read."""
    loggers = [logging.getLogger(n) for n in ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "PIL")]
    before = [one.disabled for one in loggers]
    try:
        for one in loggers:
            one.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, was in zip(loggers, before, strict=True):
            one.disabled = was
