"""The lines between the parties: a TCP proxy before each, whose connections can be delayed and reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct


class Line:
    """What others dial in the place of one party."""

    def __init__(self, port: int, behind: int) -> None:
        self._port, self._behind = port, behind
        self.delay = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._called, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset(self) -> None:
        """Break all connections, as a router does that forgot them."""
        for writer in list(self._open):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            inner, out = await asyncio.open_connection("127.0.0.1", self._behind)
            self._open.add(out)
            try:
                await asyncio.gather(self._pass(reader, out), self._pass(inner, writer))
            finally:
                self._open.discard(out)
                out.close()
        except (OSError, asyncio.CancelledError):
            pass  # nobody is there yet, or it is the end
        finally:
            self._open.discard(writer)
            writer.close()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()
