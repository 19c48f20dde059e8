"""Imports CrypTen 0.4.1 on a current torch, and lets several of its ranks live in one process.

Of CrypTen we use arithmetic and operators. What does not import today (its model importer needs private
modules that torch has dropped, and onnx) is ``crypten.nn`` and ``crypten.optim``, which nothing else of it
needs: two empty modules stand in for them while it is imported, and are taken away afterwards.
CrypTen keeps its communicator and its generators in globals; here the thread that asks decides whose they
are, and any other thread gets CrypTen's own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Iterator, MutableMapping
from types import ModuleType
from typing import Any, Final

from privinfer.errors import ConfigError

VERSION: Final = "0.4.1"
NEEDS: Final = ("torch", "omegaconf", "yaml")
STAND_INS: Final = ("crypten.nn", "crypten.optim")
GENERATORS: Final = ("prev", "next", "local", "global")
HINT: Final = (
    f'run `make crypten`, or: pip install "privinfer[torch]" "omegaconf>=2.1" "pyyaml>=6" '
    f"&& pip install --no-deps crypten=={VERSION}"
)

_lock = threading.Lock()
_here = threading.local()
_seats = 0
_threads_before = 0


class Seat:
    """What CrypTen has of its own in each process: a communicator and generators."""

    def __init__(self) -> None:
        self.communicator: Any = None
        self.generators: dict[str, dict[Any, Any]] = {kind: {} for kind in GENERATORS}


class _OfThread(MutableMapping[Any, Any]):
    """One of CrypTen's dicts of generators: the thread's own, or CrypTen's where it has none."""

    def __init__(self, kind: str, original: dict[Any, Any]) -> None:
        self._kind, self._original = kind, original

    def _now(self) -> dict[Any, Any]:
        seat = getattr(_here, "seat", None)
        return self._original if seat is None else seat.generators[self._kind]

    def __getitem__(self, device: Any) -> Any:
        return self._now()[device]

    def __setitem__(self, device: Any, generator: Any) -> None:
        self._now()[device] = generator

    def __delitem__(self, device: Any) -> None:
        del self._now()[device]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def check_installed() -> None:
    """Raise ConfigError with the command that helps, where CrypTen cannot run here; imports nothing."""
    try:
        found = importlib.metadata.version("crypten")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("crypten is not installed", hint=HINT) from None
    if found != VERSION:
        raise ConfigError(f"crypten {found} is installed, only {VERSION} is known to work", hint=HINT)
    for name in NEEDS:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"crypten needs {name}, which is not installed", hint=HINT)


def load() -> Any:
    """CrypTen, imported once, with its autograd off.

    Raises
    ------
    ConfigError
        It is not installed, or not as it should be.
    """
    with _lock:
        crypten: Any = sys.modules.get("crypten") or _import()
        if not isinstance(crypten.generators["prev"], _OfThread):
            _seat_by_thread(crypten)
        return crypten


def _import() -> Any:
    check_installed()
    stand_ins = {name: ModuleType(name) for name in STAND_INS}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("crypten")
    except Exception as error:
        raise ConfigError(f"crypten cannot be imported: {error}", hint=HINT) from error
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _seat_by_thread(crypten: Any) -> None:
    module = crypten.communicator
    original = module.get

    def get() -> Any:
        seat = getattr(_here, "seat", None)
        return original() if seat is None else seat.communicator

    module.get = get
    for kind in GENERATORS:
        crypten.generators[kind] = _OfThread(kind, crypten.generators[kind])
    crypten.set_grad_enabled(False)


@contextlib.contextmanager
def seated(seat: Seat) -> Iterator[Any]:
    """CrypTen as one rank sees it, in this thread, with one torch thread; gives the module."""
    global _seats, _threads_before  # noqa: PLW0603 - torch counts its threads by process
    crypten = load()
    torch: Any = importlib.import_module("torch")
    with _lock:
        if not _seats:
            _threads_before = torch.get_num_threads()
        _seats += 1
    torch.set_num_threads(1)
    _here.seat = seat
    try:
        yield crypten
    finally:
        _here.seat = None
        with _lock:
            _seats -= 1
            if not _seats:
                torch.set_num_threads(_threads_before)
