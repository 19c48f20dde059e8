"""Cryptographic multi-source private inference.

One neural network, owned by one party, runs jointly over inputs held by several others, and only the
agreed receiver learns the output. Start with :func:`run_local`; between machines use :class:`Session`.
"""

from __future__ import annotations

from privinfer import insecure
from privinfer.errors import (
    ConfigError,
    ConsentError,
    InputError,
    IntegrityError,
    ModelUnsupported,
    PrecisionError,
    PrivinferError,
    ProtocolViolation,
    ReplayError,
    TransportError,
)
from privinfer.graph.advise import fix, validate
from privinfer.graph.ir import Model
from privinfer.graph.load import from_onnx, from_torch
from privinfer.graph.to_polynomial import to_polynomial
from privinfer.runtime.local import run_local
from privinfer.runtime.party import Result, Session

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "ConsentError",
    "InputError",
    "IntegrityError",
    "Model",
    "ModelUnsupported",
    "PrecisionError",
    "PrivinferError",
    "ProtocolViolation",
    "ReplayError",
    "Result",
    "Session",
    "TransportError",
    "fix",
    "from_onnx",
    "from_torch",
    "insecure",
    "run_local",
    "to_polynomial",
    "validate",
]
