"""What every backend offers the runtime: roles, and a player for each.

A player is sans-IO. Each of its phases is a generator that yields :class:`Send`, :class:`Receive` or
:class:`Progress` and is sent back what was received. The runtime moves the messages; a test can too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from privinfer.errors import ProtocolViolation
from privinfer.graph import ir
from privinfer.protocols.ckks.release import Record
from privinfer.protocols.commitment import Opening
from privinfer.protocols.privacy import Budget
from privinfer.protocols.randomness import Scope
from privinfer.protocols.sealing import Keys
from privinfer.session.terms import Release

if TYPE_CHECKING:  # the package below imports this module
    from privinfer.backends.ckks.moving import Moving

Role: TypeAlias = str


class Phase(IntEnum):
    """Phases of a session, each with counters of its own; signs of life and farewells count as CONTROL."""

    SETUP = 0
    OFFLINE = 1
    ONLINE = 2
    CONTROL = 3


@dataclass(frozen=True, slots=True)
class Send:
    """Give `data` to whoever plays `to`."""

    to: Role
    step: int
    data: bytes | memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for exactly `size` bytes of `step` from whoever plays `source`.

    `optional`: where a party that can be done without is gone, None comes in place of its message.
    """

    source: Role
    step: int
    size: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Tell the user how far this phase is."""

    done: int
    total: int
    label: str


Play: TypeAlias = Generator[Send | Receive | Progress, Any, Any]
Outputs: TypeAlias = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Network:
    """What the parties agreed to assume of the lines between them; only speed depends on it.

    Attributes
    ----------
    comparison : str
        "fss": comparison keys, dealt ahead, fewest rounds. "blinded": the helper online, fewest bytes.
        "auto": for each layer what takes less time in all.
    round_trip : float
        Seconds.
    bandwidth : float
        Bits a second that one party can send.
    """

    comparison: str = "fss"
    round_trip: float = 0.0002
    bandwidth: float = 10e9


@dataclass(frozen=True, slots=True)
class Table:
    """Who sits at the table: the public facts that every player needs.

    Attributes
    ----------
    party : mapping
        The party behind each role.
    owners : mapping
        Input name to owner party.
    receivers : mapping
        Output name to receiver party.
    architecture : Architecture
        What is computed.
    session : bytes
        Tag of this very join: manifest and everybody's nonce.
    network : Network
        What is assumed of the lines.
    threshold : int
        How many key holders an answer takes; 0 where there are none.
    release : Release
        What of the results may leave.
    """

    party: Mapping[Role, str]
    owners: Mapping[str, str]
    receivers: Mapping[str, str]
    architecture: ir.Architecture
    session: bytes
    network: Network = Network()
    threshold: int = 0
    release: Release = field(default_factory=Release)


@dataclass(frozen=True, slots=True)
class Private:
    """What one party alone brings: its signature, its model, its inputs, checked and batch first.

    An input is in `inputs` or, where it lay encrypted, in `fragments`.
    `openings` open this run's commitments to the inputs, `weights` the one to the model: masks derive from
    them.
    `release` writes to its ledger what decryption shares are about to leave, before they do.
    `keys` are those that this run's results are sealed to.
    `budget` grants answers where the terms limit them and this party is one that counts.
    """

    sign: Callable[[bytes], bytes] = field(repr=False)
    verify: Callable[[str, bytes, bytes], None] = field(repr=False)
    model: ir.Model | None = None
    inputs: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict, repr=False)
    fragments: dict[str, Moving] = field(default_factory=dict, repr=False)
    release: Record | None = field(default=None, repr=False)
    openings: dict[str, Opening] = field(default_factory=dict, repr=False)
    weights: Opening | None = field(default=None, repr=False)
    keys: Keys = field(default_factory=Keys)
    budget: Budget | None = field(default=None, repr=False)

    def forget(self) -> None:
        """Let go of what belonged to one run."""
        self.inputs.clear()
        self.fragments.clear()
        self.openings.clear()
        self.keys.forget()


class Player(Protocol):
    """One role at one party.

    Attributes
    ----------
    batch : int or None
        Rows of the inference, where this role is told.
    later : int or None
        Rows that the same run still brings in chunks to come, where this role is told.
    rounds : int or None
        Online messages that this role counted, where it does.
    notes : tuple of str
        What its own party's report says of precision beyond what all parties know.
    """

    batch: int | None
    later: int | None
    rounds: int | None
    notes: tuple[str, ...]

    def setup(self) -> Play:
        """Once a session."""
        ...

    def offline(self, scope: Scope) -> Play:
        """Before each inference, what does not depend on values."""
        ...

    def online(self) -> Play:
        """The inference; a receiver's player returns its Outputs."""
        ...

    def deal(self, scope: Scope, batch: int) -> Play:
        """Offline, before the data exist: returns what this role has to keep, or None.

        `batch` counts the rows of this chunk and of all that follow in the same run.
        """
        ...

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """Take the place of :meth:`offline`, with what was kept."""
        ...

    def keep(self) -> bytes | None:
        """What this role keeps of the setup for everything that is dealt under it; SECRET."""
        ...

    def restore(self, session: bytes, kept: bytes) -> None:
        """Take a setup from before in use for :meth:`resume`."""
        ...


class Idle:
    """A player with nothing to do; roles override the phases they have."""

    batch: int | None = None
    later: int | None = None
    rounds: int | None = None
    notes: tuple[str, ...] = ()

    def setup(self) -> Play:
        """Do nothing."""
        yield from ()

    def offline(self, scope: Scope) -> Play:
        """Do nothing."""
        yield from ()

    def online(self) -> Play:
        """Do nothing."""
        yield from ()

    def deal(self, scope: Scope, batch: int) -> Play:
        """Do nothing."""
        yield from ()

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """Do nothing."""
        yield from ()

    def keep(self) -> bytes | None:
        """Nothing."""
        return None

    def restore(self, session: bytes, kept: bytes) -> None:
        """Nothing to restore."""


class Backend(Protocol):
    """A protocol family.

    Attributes
    ----------
    name : str
        As the session file calls it.
    ordered : bool
        Whether, of two messages of a phase, the one with the larger step is the one that is due later,
        whoever waits for them: then it can be told who holds everybody up where each waits for another.
    """

    name: str
    ordered: bool

    def cast(self, manifest: Any) -> dict[Role, str]:
        """Every role of a session and the party that plays it."""
        ...

    def player(self, role: Role, table: Table, private: Private) -> Player:
        """Who plays a role."""
        ...

    def keeps(self, role: Role) -> bool:
        """Whether a role keeps something of what is dealt ahead."""
        ...

    def rows_at_once(self, table: Table, network: Network) -> int:
        """Rows of one chunk: a run over more of them goes in several. Every party computes the same."""
        ...

    def spare(self, manifest: Any) -> frozenset[str]:
        """Parties that a run can go on without once the setup is done."""
        ...


@contextmanager
def blame(culprit: str, step: str) -> Iterator[None]:
    """Turn a malformed message into a ProtocolViolation that names its sender."""
    try:
        yield
    except ValueError:
        raise ProtocolViolation("sent a malformed message", culprit=culprit, step=step) from None
