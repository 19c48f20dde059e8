"""What a parent and its workers say to each other over pipes: length-prefixed CBOR, no pickle."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import IO, Any

import cbor2
import numpy as np

from privinfer.errors import BY_CODE, PrivinferError
from privinfer.graph import ir
from privinfer.session.fragment import Fragment

_LENGTH = struct.Struct("<Q")


def write(pipe: IO[bytes], message: Mapping[str, Any]) -> None:
    """One length-prefixed CBOR message."""
    data = cbor2.dumps(message)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def read(pipe: IO[bytes]) -> dict[str, Any] | None:
    """The next message, or None at the end."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    data = pipe.read(_LENGTH.unpack(head)[0])
    found: dict[str, Any] = cbor2.loads(data)
    return found


def pack_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as shape, dtype and raw bytes."""
    return {
        name: [list(a.shape), a.dtype.str, a.tobytes()]
        for name, a in ((k, np.ascontiguousarray(v)) for k, v in arrays.items())
    }


def unpack_arrays(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`pack_arrays`."""
    return {k: np.frombuffer(raw, dtype=np.dtype(d)).reshape(s) for k, (s, d, raw) in packed.items()}


def pack_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays, and of fragments where they lie."""
    at_rest = {k: v for k, v in inputs.items() if isinstance(v, Fragment)}
    return {
        "arrays": pack_arrays({k: v for k, v in inputs.items() if k not in at_rest}),
        "fragments": {k: [os.fspath(v.path), os.fspath(v.key)] for k, v in at_rest.items()},
    }


def unpack_inputs(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`pack_inputs`."""
    at_rest = {k: Fragment(path, key) for k, (path, key) in packed["fragments"].items()}
    return {**unpack_arrays(packed["arrays"]), **at_rest}


def pack_model(model: ir.Model) -> dict[str, Any]:
    """A model for its owner's process."""
    return {
        "architecture": model.architecture.to_bytes(),
        "parameters": {n: pack_arrays(p) for n, p in model.parameters.items()},
    }


def unpack_model(packed: Mapping[str, Any]) -> ir.Model:
    """Inverse of :func:`pack_model`."""
    parameters = {n: unpack_arrays(p) for n, p in packed["parameters"].items()}
    return ir.Model(ir.Architecture.from_bytes(packed["architecture"]), parameters)


def describe(error: PrivinferError) -> dict[str, Any]:
    """An error as plain data."""
    return {"code": error.code, "message": error.message, "culprit": error.culprit, "hint": error.hint}


def raise_described(told: Mapping[str, Any]) -> None:
    """Raise an error that :func:`describe` made plain data of."""
    kind = BY_CODE.get(told["code"], PrivinferError)
    raise kind(told["message"], culprit=told["culprit"], hint=told["hint"])
