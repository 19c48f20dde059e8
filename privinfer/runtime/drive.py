"""Moves messages between players; knows nothing of what they compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from privinfer.backends.base import Phase, Play, Progress, Receive, Role, Send


class Post(Protocol):
    """Where a player's messages go and come from."""

    def send(self, sender: Role, message: Send, phase: Phase) -> None:
        """Give a message away."""
        ...

    def take(self, receiver: Role, wanted: Receive, phase: Phase) -> bytes | None:
        """The message that is due, or None where it has not come yet."""
        ...

    def lost(self, role: Role) -> bool:
        """Whether who plays a role is gone, and can be done without."""
        ...

    def wait(self, wanted: Mapping[Role, Receive], phase: Phase) -> None:
        """Block until one of the messages may have come; raises where a party has failed."""
        ...


def drive(
    plays: Mapping[Role, Play],
    post: Post,
    phase: Phase,
    progress: Callable[[Role, Phase, Progress], None] | None = None,
) -> dict[Role, Any]:
    """Run the players of one party through one phase.

    Parameters
    ----------
    plays : mapping
        A started-afresh generator for each role.
    post : Post
        Carries messages, also between two roles of this party.
    phase : Phase
        Which one.
    progress : callable, optional
        Told of every Progress.

    Returns
    -------
    dict
        What each player returned.
    """
    ready: deque[tuple[Role, bytes | None]] = deque((role, None) for role in plays)
    waiting: dict[Role, Receive] = {}
    results: dict[Role, Any] = {}
    while ready or waiting:
        while ready:
            role, value = ready.popleft()
            try:
                action = plays[role].send(value)
            except StopIteration as done:
                results[role] = done.value
                continue
            if isinstance(action, Receive):
                waiting[role] = action
            else:
                if isinstance(action, Send):
                    post.send(role, action, phase)
                elif progress is not None:
                    progress(role, phase, action)
                ready.append((role, None))
        for role, wanted in list(waiting.items()):
            data = post.take(role, wanted, phase)
            if data is not None or (wanted.optional and post.lost(wanted.source)):
                del waiting[role]
                ready.append((role, data))
        if waiting and not ready:
            post.wait(waiting, phase)
    return results
