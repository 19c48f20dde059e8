"""What a serving party says of itself: JSON lines without data, and numbers for Prometheus."""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from privinfer.errors import ConfigError
from privinfer.transport.link import why

#: Everything that can stand in a log line: names, numbers and codes.
FIELDS = (
    "event",
    "party",
    "peer",
    "session",
    "phase",
    "seconds",
    "bytes",
    "code",
    "culprit",
    "count",
    "port",
)


class Log:
    """JSON lines; a field that is not on the list is a mistake of ours and is not written."""

    def __init__(self, party: str, stream: IO[str] | None = None) -> None:
        self._party, self._stream = party, stream if stream is not None else sys.stderr
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields: str | int | float | None) -> None:
        """Write one line."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        said = {k: v for k, v in fields.items() if k in FIELDS and v is not None}
        line = json.dumps({"time": now, "event": event, "party": self._party, **said})
        with self._lock:
            print(line, file=self._stream, flush=True)


class Meter:
    """Counters of one server; without an address nothing is counted and prometheus-client is not needed."""

    def __init__(self, address: tuple[str, int] | None, healthy: Callable[[], bool]) -> None:
        self._server: ThreadingHTTPServer | None = None
        self.port: int | None = None
        if address is None:
            return
        try:
            import prometheus_client as prom  # noqa: PLC0415 - an extra, and only where it is asked for
        except ImportError:
            raise ConfigError(
                "metrics needs prometheus-client", hint="pip install 'privinfer[serve]'"
            ) from None
        registry = prom.CollectorRegistry()
        prom.ProcessCollector(registry=registry)
        self._sessions = prom.Counter(
            "privinfer_sessions", "Sessions by how they ended", ["outcome"], registry=registry
        )
        self._refused = prom.Counter(
            "privinfer_refused", "Proposals refused, by code", ["code"], registry=registry
        )
        self._seconds = prom.Histogram(
            "privinfer_phase_seconds",
            "Seconds by phase",
            ["phase"],
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        self._bytes = prom.Counter(
            "privinfer_bytes", "Bytes by direction and phase", ["way", "phase"], registry=registry
        )
        self._running = prom.Gauge(
            "privinfer_running", "Sessions that run or have a place", registry=registry
        )
        self._waiting = prom.Gauge("privinfer_waiting", "Proposals that wait for a place", registry=registry)
        self._dropped = prom.Gauge(
            "privinfer_dropped_connections",
            "Connections dropped before they said anything",
            registry=registry,
        )

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # a client that says nothing is let go

            def do_GET(self) -> None:
                """Answer the two paths there are."""
                if self.path == "/metrics":
                    self._answer(200, prom.generate_latest(registry), prom.CONTENT_TYPE_LATEST)
                elif self.path == "/healthz":
                    good = healthy()
                    self._answer(200 if good else 503, b"ok\n" if good else b"stopping\n", "text/plain")
                else:
                    self._answer(404, b"no such page\n", "text/plain")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class has it
                """Stay quiet."""

        try:
            self._server = ThreadingHTTPServer(address, Handler)
        except OSError as exc:
            raise ConfigError(f"metrics: cannot listen on port {address[1]}: {why(exc)}") from exc
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def watch(
        self, running: Callable[[], float], waiting: Callable[[], float], dropped: Callable[[], float]
    ) -> None:
        """Where the gauges look."""
        if self._server is not None:
            self._running.set_function(running)
            self._waiting.set_function(waiting)
            self._dropped.set_function(dropped)

    def refused(self, code: str) -> None:
        """A proposal was refused."""
        if self._server is not None:
            self._refused.labels(code).inc()

    def ended(self, outcome: str, report: dict[str, Any] | None) -> None:
        """A session ended: "answered", or an error's code."""
        if self._server is None:
            return
        self._sessions.labels(outcome).inc()
        for phase, seconds in (report or {}).get("seconds", {}).items():
            self._seconds.labels(phase).observe(seconds)
        for way, phases in (report or {}).get("bytes", {}).items():
            for phase, peers in phases.items():
                self._bytes.labels(way, phase).inc(sum(peers.values()))

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
