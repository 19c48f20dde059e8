"""Turns code that blocks on its messages, as CrypTen's does, into a play of Send, Receive and Progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from privinfer.backends.base import Play, Progress, Receive, Role, Send

PATIENCE = 2.0  # seconds for a stopped thread to come to its next message


class Stopped(BaseException):
    """The play was closed; no Exception, for CrypTen takes RuntimeErrors to mean that memory is short."""


class Channel:
    """What blocking code says its messages to; its steps are numbered by itself, alike at all parties."""

    def __init__(self) -> None:
        self.actions: SimpleQueue[Send | Receive | Progress | _Done] = SimpleQueue()
        self.answers: SimpleQueue[bytes | None] = SimpleQueue()
        self.stopped = False

    def send(self, to: Role, step: int, data: bytes) -> None:
        """Give a message away; does not wait."""
        self._say(Send(to, step, data))

    def receive(self, source: Role, step: int, size: int) -> bytes:
        """Wait for a message."""
        self._say(Receive(source, step, size))
        answer = self.answers.get()
        if answer is None:
            raise Stopped
        return answer

    def progress(self, done: int, total: int, label: str) -> None:
        """Tell how far this is."""
        self._say(Progress(done, total, label))

    def _say(self, action: Send | Receive | Progress) -> None:
        if self.stopped:
            raise Stopped
        self.actions.put(action)


class _Done:
    """How the blocking code ended."""

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error


def play(work: Callable[[Channel], Any], name: str) -> Play:
    """Run `work` in a thread of its own until it is done, or until this generator is closed.

    Returns what `work` returns and raises what it raises.
    """
    channel = Channel()

    def run() -> None:
        try:
            channel.actions.put(_Done(work(channel)))
        except BaseException as error:  # raised again below, in the thread of whoever drives this
            channel.actions.put(_Done(error=error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while True:
            action = channel.actions.get()
            if isinstance(action, _Done):
                if action.error is not None:
                    raise action.error
                return action.result
            answer = yield action
            if isinstance(action, Receive):
                channel.answers.put(answer)
    finally:
        channel.stopped = True
        channel.answers.put(None)
        thread.join(PATIENCE)
