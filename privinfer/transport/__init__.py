"""How frames travel: in memory, over mutually authenticated TLS 1.3, and delayed for tests."""

from privinfer.transport.delayed import Delayed
from privinfer.transport.endpoint import Counters, Endpoint
from privinfer.transport.frames import (
    HEADER_BYTES,
    MAX_FRAME,
    Abort,
    Frame,
    Kind,
    decode_abort,
    encode_abort,
)
from privinfer.transport.memory import MemoryHub
from privinfer.transport.tls import TLSEndpoint, connect

__all__ = [
    "HEADER_BYTES",
    "MAX_FRAME",
    "Abort",
    "Counters",
    "Delayed",
    "Endpoint",
    "Frame",
    "Kind",
    "MemoryHub",
    "TLSEndpoint",
    "connect",
    "decode_abort",
    "encode_abort",
]
