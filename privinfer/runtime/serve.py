"""A long-running party: one process, one port, many sessions at once, each in a thread of its own.

Threads and not processes: the kernels and the network calls let go of the interpreter's lock, the model is in
memory once, and a process a session would cost some 60 MB and half a second of imports (docs/serve.md).
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from privinfer.errors import PrivinferError, ProtocolViolation
from privinfer.runtime import knock as kn
from privinfer.runtime import memory
from privinfer.runtime.observe import Log, Meter
from privinfer.runtime.party import Session
from privinfer.runtime.policy import Config, Policy, Service, Slots
from privinfer.session.identity import PublicIdentity
from privinfer.session.manifest import Manifest
from privinfer.transport.mesh import listen
from privinfer.transport.router import Route, Router

_POLL_S = 0.1
MAX_KNOCKING = 64  # threads for those who have not proved who they are


class Server:
    """One serving party.

    Parameters
    ----------
    config : Config
        From ``serve.toml``.
    log : Log
        Where it says what it does.
    policy : Policy, optional
        Who is admitted.

    Attributes
    ----------
    address : tuple of str and int
        Where it listens.

    Raises
    ------
    ConfigError
        An address cannot be used.
    """

    def __init__(self, config: Config, log: Log, policy: Policy | None = None) -> None:
        self._config, self._log = config, log
        self._policy = policy if policy is not None else Policy(config)
        self._slots = Slots(config.sessions, config.queue)
        self._stopping = threading.Event()
        self._asked = False
        self._lock = threading.Lock()
        self._knocking: OrderedDict[socket.socket, None] = OrderedDict()
        self._context = kn.server_context(config.identity)
        listener = listen(*config.listen)
        self.address: tuple[str, int] = listener.getsockname()[:2]
        try:
            self._meter = Meter(config.metrics, lambda: not self._stopping.is_set())
        except BaseException:
            listener.close()
            raise
        self._router = Router(listener, self._welcome)
        self._meter.watch(
            lambda: self._slots.taken, lambda: self._slots.waiting, lambda: self._router.dropped
        )

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._router.start()
        self._log("serving", port=self.address[1])

    def request_stop(self) -> None:
        """Have :meth:`run` stop; takes no lock, so a signal handler may call it."""
        self._asked = True

    def run(self) -> bool:
        """Serve until :meth:`request_stop`, then finish what runs; says whether all did."""
        self.start()
        # A signal may reach another thread, and Python handles it once this one runs: so it never waits long.
        while not self._asked:
            time.sleep(_POLL_S)
        return self.stop()

    def stop(self) -> bool:
        """Refuse new sessions, let those that run finish within the deadline; says whether all did."""
        self._stopping.set()
        self._slots.close()
        self._log("stopping", count=self._slots.taken)
        clean = self._slots.idle(self._config.stop_seconds)
        self._router.stop()
        with self._lock:
            for sock in self._knocking:
                _shut(sock)
        self._meter.close()
        self._log("stopped", count=self._slots.taken)
        return clean

    # -- those who knock -------------------------------------------------------------------------

    def _welcome(self, sock: socket.socket) -> None:
        """Take a connection that wants to propose a session; the router's thread, so no waiting here."""
        with self._lock:
            if len(self._knocking) >= MAX_KNOCKING:
                # An honest one takes milliseconds: the oldest is the least likely to be one.
                oldest, _ = self._knocking.popitem(last=False)
                _shut(oldest)
            self._knocking[sock] = None
        try:
            threading.Thread(target=self._hear, args=(sock,), name="knock", daemon=True).start()
        except RuntimeError:  # the system gives no thread: this one has to come again
            self._proved(sock)
            sock.close()

    def _proved(self, sock: socket.socket) -> None:
        with self._lock:
            self._knocking.pop(sock, None)

    def _hear(self, raw: socket.socket) -> None:
        """One connection from its handshake to its session's start."""
        try:
            raw.settimeout(kn.HANDSHAKE_S)
            # the socket stays ours under its own handle, so that it can be shut from outside
            with kn.Line(self._context.wrap_socket(raw.dup(), server_side=True), None) as line:
                try:
                    self._propose(raw, line)
                except PrivinferError as error:
                    self._meter.refused(error.code)
                    self._log("refused", code=error.code)
                    line.say(kn.refusal(error))
        except OSError:  # ssl.SSLError is one
            self._meter.refused("lost")
        except Exception as error:  # a bug, which must not end the thread with its variables printed
            self._log("failed", code=type(error).__name__)
        finally:
            self._proved(raw)
            raw.close()

    def _propose(self, raw: socket.socket, line: kn.Line) -> None:
        nonce = secrets.token_bytes(kn.NONCE_BYTES)
        sealed, signature = kn.read_proposal(line, nonce)
        manifest, service, patient = self._policy.match(sealed)
        patient.verify(kn.proposal(nonce, self._config.identity.fingerprint, sealed), signature)
        self._policy.admits(manifest, service, patient)
        self._policy.begin(manifest, patient)
        self._proved(raw)
        with contextlib.ExitStack() as undo:
            undo.callback(self._policy.end, patient)
            self._slots.take(self._config.queue_seconds)
            undo.callback(self._slots.give)
            session = bytes.fromhex(manifest.session)
            route = self._router.open(session)  # others may dial before the word to go has come
            undo.callback(self._router.shut, session)
            line.say({"answer": kn.ACCEPTED})
            # the others may make it wait for as long as this one did
            seconds = (len(manifest.parties) - 1) * (self._config.queue_seconds + kn.HANDSHAKE_S)
            if not kn.read_go(line, seconds):
                raise ProtocolViolation("gave its place back")
            done = undo.pop_all()
        thread = threading.Thread(
            target=self._hold,
            args=(manifest, service, patient, route, done.close),
            name="session",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # the system gives no thread
            done.close()
            raise

    # -- sessions --------------------------------------------------------------------------------

    def _hold(
        self,
        manifest: Manifest,
        service: Service,
        patient: PublicIdentity,
        route: Route,
        done: Callable[[], None],
    ) -> None:
        """Play this party in one session."""
        started = time.monotonic()
        short = manifest.session[:8]
        outcome, culprit = "answered", None
        report: dict[str, Any] | None = None
        self._log("begun", session=short, peer=patient.name)
        try:
            report = self._play(manifest, service, patient, route)
        except PrivinferError as error:
            outcome, culprit = error.code, error.culprit
        except Exception as error:  # a bug, which must not take the other sessions with it
            outcome = type(error).__name__
        finally:
            memory.give_back()
            seconds = round(time.monotonic() - started, 3)
            self._meter.ended(outcome, report)
            self._log(
                "ended", session=short, code=outcome, culprit=culprit, seconds=seconds, bytes=_moved(report)
            )
            done()  # last: a server that stops waits for it

    def _play(
        self, manifest: Manifest, service: Service, patient: PublicIdentity, route: Route
    ) -> dict[str, Any] | None:
        """Join and run; what it used is free when it returns."""
        inputs = service.bring(patient.name)
        with Session(manifest).join(
            service.name, self._config.identity, model=service.model, listener=route, shared=True
        ) as party:
            party.run(inputs)
            return party.report


def _moved(report: dict[str, Any] | None) -> int | None:
    """Bytes sent and received."""
    if report is None:
        return None
    return sum(sum(peers.values()) for way in report["bytes"].values() for peers in way.values())


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
