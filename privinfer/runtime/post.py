"""A party's post office: players' messages over the endpoint, and the watch over everybody else.

Every party tells all others a few times within a deadline that it lives, whom it waits for and how far it
is. So a party that is gone is named by everyone alike, even by those who did not wait for it themselves,
and one that is alive but delivers nothing is found by following who waits for whom. Where that leads in a
circle, the earliest wait is the one that is owed something: all others follow from it.

What parties say of themselves is hearsay. It decides whom an error names, never what is computed.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from privinfer.backends.base import Phase, Receive, Role, Send
from privinfer.errors import BY_CODE, PrivinferError, ProtocolViolation, TransportError
from privinfer.runtime.transcript import Transcript
from privinfer.transport.endpoint import Endpoint
from privinfer.transport.frames import Frame, Kind, decode_abort, encode_abort

CHUNK = 4 << 20  # a long message goes in pieces, so that a slow line is not taken for a dead party
STEP_BITS = 20
GREETINGS = 8  # steps of the greeting; after them two for each run
MAX_WORD = 16  # bytes that a DONE may carry, beside what is signed for the receipt
_CLIENTS = ("owner:", "receiver:")
NOBODY = 0xFFFF
_LAST = (1 << 28) - 1
# Place in the list of the party waited for, or NOBODY; frames handled so far; when() of the wait.
_ALIVE = struct.Struct("<HQQ")


def when(run: int, phase: int, client: bool = False, taken: int = 0) -> int:
    """When in a session a wait comes, comparable between parties: larger is later.

    `taken` counts the messages that the waiting role has had in this phase, or is the step of the one that it
    waits for, where steps have an order. Clients (owners, receivers)
    are served when all others are ready, so their waits come last in a phase.
    """
    return (run & 0x7FFFFFFF) + 1 << 31 | phase << 29 | client << 28 | min(taken, _LAST)


def _noted(frame: Frame) -> bool:
    """Whether a message belongs into a transcript."""
    return frame.kind is Kind.DATA or (frame.kind is Kind.HELLO and frame.step >= GREETINGS)


@dataclass(slots=True)
class Sign:
    """The last sign of life of a peer."""

    heard: float
    changed: float
    waits_for: int = NOBODY
    done: int = -1
    when: int = 0


class Watch:
    """Sends signs of life and judges those of the others.

    Parameters
    ----------
    endpoint : Endpoint
        To all peers.
    names : tuple of str
        All parties, in the manifest's order.
    deadline : float
        Seconds of silence, or of no progress, that end the session.
    """

    def __init__(self, endpoint: Endpoint, names: tuple[str, ...], deadline: float) -> None:
        now = time.monotonic()
        self.signs = {peer: Sign(now, now) for peer in endpoint.peers}
        self.waits_for, self.when = NOBODY, 0
        self.handled = 0
        self._endpoint, self._names, self._deadline = endpoint, names, deadline
        self._looked = self._moved = now
        self._before = 0
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name=f"alive {endpoint.name}", daemon=True)
        self._ticker.start()

    @property
    def pause(self) -> float:
        """Seconds between two signs of life."""
        return min(1.0, self._deadline / 5)

    def _tick(self) -> None:
        while not self._stop.wait(self.pause):
            payload = _ALIVE.pack(self.waits_for, self.handled, self.when)
            for peer in self._endpoint.peers:
                with contextlib.suppress(PrivinferError):  # the party's own thread will meet it too
                    self._endpoint.send_if_idle(peer, Frame(Kind.ALIVE, Phase.CONTROL, 0, 0, payload))

    def stop(self) -> None:
        """End the ticker."""
        self._stop.set()
        self._ticker.join()

    def forget(self, peer: str) -> None:
        """Judge a peer no more."""
        self.signs.pop(peer, None)

    def heard(self, peer: str, frame: Frame) -> None:
        """Note a frame of a peer."""
        if peer not in self.signs:
            return
        sign, now = self.signs[peer], time.monotonic()
        sign.heard = now
        if frame.kind is Kind.ALIVE:
            if len(frame.payload) != _ALIVE.size:
                raise ProtocolViolation("sent a malformed sign of life", culprit=peer)
            *state, sign.when = _ALIVE.unpack(frame.payload)
            if state != [sign.waits_for, sign.done]:
                sign.waits_for, sign.done = state
                sign.changed = now
        elif frame.kind is not Kind.DATA:  # Office counts data, for not all of it is wanted
            self.handled += 1

    def waiting(self, peer: str | None, at: int = 0) -> None:
        """Note whom this party waits for now, and when in the session that is."""
        self.waits_for, self.when = NOBODY if peer is None else self._names.index(peer), at

    def looked(self) -> float:
        """Note that this party reads its inbox now; returns for how long it did not.

        That time does not count against the others: what they sent meanwhile is still to be read.
        """
        now = time.monotonic()
        away, self._looked = now - self._looked, now
        if away <= self.pause:
            return 0.0
        for sign in self.signs.values():
            sign.heard += away
            sign.changed += away
        return away

    def judge(self, awaited: str | None, since: float, gone: set[str]) -> None:
        """Raise TransportError where a peer is silent, or where progress has stopped at one."""
        now = time.monotonic()
        if self.handled != self._before:
            self._before, self._moved = self.handled, now
        there = [peer for peer in self.signs if peer not in gone]
        silent = min(there, key=lambda peer: self.signs[peer].heard, default=None)
        if silent is not None and now - self.signs[silent].heard > self._deadline:
            raise TransportError(f"was silent for {self._deadline:g} s", culprit=silent)
        if awaited is None or now - since <= self._deadline:
            return
        culprit, involved, patience = self._owes(awaited)
        if now - since <= patience * self._deadline or not self.signs.keys() >= {*involved}:
            return
        stuck = all(now - self.signs[peer].changed > self._deadline for peer in involved)
        # Every frame it handles is handled by another party too: progress that nobody shares is none.
        moved = [sign.changed for peer, sign in self.signs.items() if peer != culprit]
        if stuck or now - max(moved, default=self._moved) > self._deadline < now - self._moved:
            raise TransportError(f"made no progress for {self._deadline:g} s", culprit=culprit)

    def _owes(self, awaited: str) -> tuple[str, list[str], float]:
        """Who holds everybody up, on whose words that rests, how many deadlines to wait for better ones."""
        own = self._endpoint.name
        path = [own, awaited]
        while (following := self._follow(path[-1])) not in path:
            path.append(following)
        circle = path[path.index(following) :]
        if len(circle) == 1:  # it waits for nobody
            return circle[0], circle, 1.0
        at = {peer: self.when if peer == own else self.signs[peer].when for peer in circle}
        after = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
        # of several earliest waits that follow each other the last
        earliest = min(at.values())
        first = min(
            (peer for peer in circle if at[peer] == earliest),
            key=lambda peer: (at[after[peer]] == earliest, self._names.index(peer)),
        )
        owing = after[first]
        others = [peer for peer in circle if peer != own]
        # Where it says that it waits for us, who have sent what was due, others may know better.
        return (owing, others, 1.0) if owing != own else (first, others, 1.5)

    def _follow(self, peer: str) -> str:
        if peer not in self.signs:  # given up: it waits for nobody
            return peer
        at = self.signs[peer].waits_for
        return self._names[at] if at < len(self._names) else peer


class Office:
    """A Post over an endpoint, for one join.

    Parameters
    ----------
    endpoint : Endpoint
        To all peers.
    names : tuple of str
        All parties, in the manifest's order.
    deadline : float
        Seconds.
    cast : mapping
        Who plays what; channels are numbered by its order, so it is the same everywhere.
    spare : frozenset of str
        Parties that a run can go on without; one that is lost before the first run ends the session still.
    ordered : bool
        Whether steps tell when in a phase a message is due.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        names: tuple[str, ...],
        deadline: float,
        cast: Mapping[Role, str],
        spare: frozenset[str] = frozenset(),
        *,
        ordered: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.watch = Watch(endpoint, names, deadline)
        self.inference = 0
        self.cast = cast
        self._pairs = [(a, b) for a in cast for b in cast]
        self._channels = {pair: k for k, pair in enumerate(self._pairs)}
        self._frames: dict[tuple[Role, Role], deque[Frame]] = {pair: deque() for pair in self._pairs}
        self._control: deque[tuple[str, Frame]] = deque()
        self._greeted: set[tuple[str, int]] = set()
        self._checks: dict[int, Callable[[str, bytes], None]] = {}
        self._done: dict[str, int] = {}
        self._words: dict[tuple[str, int], bytes] = {}
        self._said = -1
        self._gone: set[str] = set()
        self._wanted: set[tuple[Role, Role]] = set()
        self._taken: Counter[tuple[Role, Phase]] = Counter()
        self._told: PrivinferError | None = None
        self._lost: PrivinferError | None = None
        self._spare, self._ordered = spare, ordered
        self._running = False
        self._deaf: set[str] = set()
        self.missing: set[str] = set()
        self.online = False  # a message of an online phase was sent or came, here or where somebody gave up
        self._transcript: Transcript | None = None

    def begin(self, run: int) -> None:
        """Start a run; everybody has to be there still."""
        self.inference = run
        self._running = True
        self._taken.clear()
        for peer in sorted(self._gone - self.missing):
            if not self._give_up(TransportError("left before the end", culprit=peer)):
                raise TransportError("left before the end", culprit=peer)

    def note(self, transcript: Transcript) -> None:
        """Write down from now on whatever is sent and received, signs of life and the joining excepted."""
        for pair, queue in self._frames.items():
            if queue:  # it would be used, and stand in no receipt
                raise ProtocolViolation("sent a message before all had joined", culprit=self.cast[pair[0]])
        for peer, frame in self._control:
            if _noted(frame):
                raise ProtocolViolation("sent a message before all had joined", culprit=peer)
        self._transcript = transcript

    def lost(self, role: Role) -> bool:
        """Whether who plays a role is gone, and can be done without."""
        return self.cast[role] in self.missing

    def _give_up(self, error: PrivinferError) -> bool:
        """Go on without a party that was lost, where that can be."""
        peer = error.culprit
        if error is self._told:  # who gave up because of a spare party is lost itself
            return False
        if peer in self.missing:
            return True
        if not isinstance(error, TransportError) or peer not in self._spare or not self._running:
            return False
        self.missing.add(peer)
        self._gone.add(peer)
        self.watch.forget(peer)
        return True

    def _peers(self) -> set[str]:
        return set(self.endpoint.peers) - self.missing

    # -- what players say ------------------------------------------------------------------------

    def send(self, sender: Role, message: Send, phase: Phase) -> None:
        """Send a player's message, in pieces where it is long."""
        pair = (sender, message.to)
        step = ((self.inference & 0x7FF) << STEP_BITS) | message.step
        to = self.cast[message.to]
        view = memoryview(message.data)
        for at in range(0, max(len(view), 1), CHUNK):
            frame = Frame(Kind.DATA, phase, self._channels[pair], step, view[at : at + CHUNK])
            if to == self.endpoint.name:
                self._frames[pair].append(frame)
            else:
                self.online = self.online or phase is Phase.ONLINE
                self._post(to, frame)
                self.watch.handled += 1

    def _post(self, to: str, frame: Frame) -> None:
        if to in self.missing or to in self._deaf:
            return
        spare = to in self._spare and self._running
        if spare:  # should it take nothing, the others must see whom this party waits for
            self.watch.waiting(to)
        try:
            self.endpoint.send(to, frame)
        except TransportError:
            if not spare:
                raise
            self._deaf.add(to)  # it is given up when its last words were read: why it left may concern all
        finally:  # after it has gone out: the line is busy while this is hashed
            if self._transcript is not None and _noted(frame):
                self._transcript.sent(to, frame)
        if spare:
            self.watch.waiting(None)

    def take(self, receiver: Role, wanted: Receive, phase: Phase) -> bytes | None:
        """The whole message once all its pieces are here."""
        pair = (wanted.source, receiver)
        queue = self._frames[pair]
        step = ((self.inference & 0x7FF) << STEP_BITS) | wanted.step
        have, pieces = 0, 0
        for frame in queue:
            if (frame.phase, frame.step) != (phase, step):
                raise self._violation(pair, "sent a message out of its turn", wanted)
            have, pieces = have + len(frame.payload), pieces + 1
            if have > wanted.size or (not len(frame.payload) and wanted.size):
                raise self._violation(pair, "sent a message of the wrong size", wanted)
            if have == wanted.size:
                self._taken[receiver, phase] += 1
                self.watch.handled += pieces
                return b"".join(queue.popleft().payload for _ in range(pieces))
            if len(frame.payload) != CHUNK:
                raise self._violation(pair, "sent a message of the wrong size", wanted)
        return None

    def wait(self, wanted: Mapping[Role, Receive], phase: Phase) -> None:
        """Block until a message of one of the wanted channels came."""
        self._wanted = {(w.source, role) for role, w in wanted.items()}
        before = sum(len(self._frames[c]) for c in self._wanted)
        waits = [
            (when(self.inference, phase, role.startswith(_CLIENTS), self._turn(role, w, phase)), peer)
            for role, w in wanted.items()
            if (peer := self.cast[w.source]) != self.endpoint.name
        ]
        at, culprit = min(waits, default=(0, None))
        optional = {self.cast[w.source] for w in wanted.values() if w.optional}

        def awaited() -> str | None:
            for _, peer in waits:
                if self._done.get(peer, -1) >= self.inference:
                    raise TransportError("is done, but never sent what was due", culprit=peer)
            return culprit

        def came() -> bool:
            return sum(len(self._frames[c]) for c in self._wanted) > before or bool(optional & self.missing)

        self._until(came, awaited, at)

    def _turn(self, role: Role, wanted: Receive, phase: Phase) -> int:
        return wanted.step if self._ordered else self._taken[role, phase]

    def _violation(self, pair: tuple[Role, Role], what: str, wanted: Receive) -> ProtocolViolation:
        return ProtocolViolation(what, culprit=self.cast[pair[0]], round=wanted.step, step=str(wanted.step))

    # -- what parties say ------------------------------------------------------------------------

    def tell(self, kind: Kind, phase: Phase, step: int, payload: bytes = b"") -> None:
        """Send a control frame to all peers."""
        for peer in self.endpoint.peers:
            self._post(peer, Frame(kind, phase, 0, step, payload))

    def tell_each(self, kind: Kind, phase: Phase, step: int, payloads: Mapping[str, bytes]) -> None:
        """Send each peer a control frame of its own."""
        for peer in self.endpoint.peers:
            self._post(peer, Frame(kind, phase, 0, step, payloads[peer]))

    def expect(self, step: int, check: Callable[[str, bytes], None]) -> None:
        """Check each HELLO of this step as soon as it comes: what its sender says later may mislead."""
        self._checks[step] = check
        for peer, frame in self._control:
            if frame.step == step:
                check(peer, bytes(frame.payload))

    def hear(self, step: int, senders: set[str]) -> dict[str, bytes]:
        """Wait for one HELLO of this step from each of the senders."""
        at = self._heard_at(step)
        heard: dict[str, bytes] = {}

        def complete() -> bool:
            for peer, frame in list(self._control):
                if frame.step == step and peer in senders:
                    heard[peer] = bytes(frame.payload)
                    self._control.remove((peer, frame))
            return heard.keys() >= senders - self.missing

        self._until(complete, lambda: next(iter(sorted(senders - self.missing - heard.keys())), None), at)
        return heard

    def _heard_at(self, step: int) -> int:
        """When a greeting is waited for: the first of a run before all else, the second before online."""
        run = self._said + 1
        if step < GREETINGS:
            return when(run, Phase.SETUP, taken=step) if run else step
        if (step - GREETINGS) % 2:
            return when(run, Phase.OFFLINE, True, _LAST)
        if run:
            return when(run - 1, Phase.CONTROL, True, _LAST)
        return when(0, Phase.SETUP, True, _LAST)  # what is set up at the join comes before the first run

    def barrier(self, run: int, word: bytes = b"") -> dict[str, bytes]:
        """Tell all others that this party's run went well, and wait until all say so: with which words."""
        if self._transcript is None:
            self.tell(Kind.DONE, Phase.CONTROL, run, word)
        else:
            self.tell_each(Kind.DONE, Phase.CONTROL, run, self._transcript.claims(run, word))
        self._said = run
        self._greeted = {(peer, step) for peer, step in self._greeted if step < GREETINGS}
        self._checks.clear()

        def missing() -> list[str]:
            return sorted(p for p in self._peers() if self._done.get(p, -1) < run)

        self._until(lambda: not missing(), lambda: next(iter(missing()), None), when(run, Phase.CONTROL))
        for pair, queue in self._frames.items():
            if self.cast[pair[0]] in self.missing:  # it may have been lost in the middle of a message
                queue.clear()
            for frame in queue:  # the next run may have begun elsewhere
                if frame.step >> STEP_BITS != (run + 1) & 0x7FF:
                    raise ProtocolViolation("sent more than was due", culprit=self.cast[pair[0]])
        if self._transcript is not None:
            self._transcript.compare(self._peers())
        return {peer: self._words.pop((peer, run)) for peer in sorted(self._peers())}

    def leave(self) -> None:
        """Say goodbye."""
        self.watch.stop()  # nothing may follow a BYE
        for peer in self.endpoint.peers:
            if peer not in self._gone:
                with contextlib.suppress(PrivinferError):
                    self.endpoint.send(peer, Frame(Kind.BYE, Phase.CONTROL, 0, 0))

    def abort(self, error: PrivinferError) -> None:
        """Tell everybody who is still there why this ends."""
        self.watch.stop()  # it could be in our way
        payload = encode_abort(error.code, error.message, error.culprit)
        for peer in self.endpoint.peers:
            if peer not in self._gone:
                with contextlib.suppress(PrivinferError):
                    frame = Frame(Kind.ABORT, Phase.CONTROL, 0, int(self.online), payload)
                    self.endpoint.send_if_idle(peer, frame)

    def last_words(self, error: TransportError) -> PrivinferError:
        """What is said of it elsewhere: who seems to be at fault may have left because of another one."""
        until = time.monotonic() + min(1.0, self.watch.pause)
        lost: PrivinferError | None = error if error is self._lost else None
        told: PrivinferError | None = None
        while (rest := until - time.monotonic()) > 0:
            try:
                peer, frame = self.endpoint.receive(rest)
            except TimeoutError:
                break
            except PrivinferError as said:
                if said.culprit is None:  # the endpoint is closed
                    break
                if not self._give_up(said):
                    lost = lost or said
                continue
            try:
                self._sort(peer, frame)
            except PrivinferError as said:
                if self._give_up(said):
                    continue
                # what we see ourselves, its own last words, or a second witness
                if said is not self._told or error.culprit in (peer, said.culprit):
                    return said
                told = told or said
        return told or lost or error

    def hear_out(self) -> None:
        """After this party gave up: listen until all others did, or one says that it had gone online."""
        until = time.monotonic() + min(1.0, self.watch.pause)
        waits_for = self._peers() - self._gone
        while waits_for and not self.online and (rest := until - time.monotonic()) > 0:
            try:
                peer, frame = self.endpoint.receive(rest)
                self._sort(peer, frame)
            except TimeoutError:
                return
            except PrivinferError as error:
                if error.culprit is None:  # the endpoint is closed
                    return
                if error is not self._told:
                    waits_for.discard(error.culprit)
            waits_for -= self._gone

    def close(self) -> None:
        """Stop the watch and close the endpoint."""
        self.watch.stop()
        self.endpoint.close()

    # -- the inbox -------------------------------------------------------------------------------

    def _until(self, satisfied: Callable[[], bool], awaited: Callable[[], str | None], at: int) -> None:
        since = judged = time.monotonic()
        last = None
        while not satisfied():
            whom = awaited()
            if whom in self._gone:
                raise TransportError("left before the end", culprit=whom)
            since += self.watch.looked()
            if whom != last:
                since, last = time.monotonic(), whom
            self.watch.waiting(whom, at)
            try:
                peer, frame = self.endpoint.receive(self.watch.pause / 2)
                self.watch.heard(peer, frame)
                self._sort(peer, frame)
            except TimeoutError:
                judged = 0.0
            except PrivinferError as error:
                if self._give_up(error):
                    continue
                self._lost = error
                raise
            if time.monotonic() - judged > self.watch.pause:  # also where signs of life never pause
                judged = time.monotonic()
                try:
                    self.watch.judge(whom, since, self._gone)
                except TransportError as error:
                    if not self._give_up(error):
                        raise
        self.watch.waiting(None)

    def _sort(self, peer: str, frame: Frame) -> None:
        if peer in self.missing:
            return
        if self._transcript is not None and _noted(frame):
            self._transcript.received(peer, frame)
        match frame.kind:
            case Kind.DATA:
                if frame.channel >= len(self._pairs):
                    raise ProtocolViolation("used a channel that does not exist", culprit=peer)
                pair = self._pairs[frame.channel]
                if self.cast[pair[0]] != peer or self.cast[pair[1]] != self.endpoint.name:
                    raise ProtocolViolation("spoke for a role that is not its own", culprit=peer)
                self._frames[pair].append(frame)
                self.online = self.online or frame.phase == Phase.ONLINE
                if pair in self._wanted:
                    self.watch.handled += 1
            case Kind.HELLO:
                if (peer, frame.step) in self._greeted:
                    raise ProtocolViolation("greeted twice", culprit=peer)
                if frame.step >= GREETINGS and (frame.step - GREETINGS) // 2 != self._said + 1:
                    raise ProtocolViolation("sent a greeting that nobody asked for", culprit=peer)
                self._greeted.add((peer, frame.step))
                self._control.append((peer, frame))
                if frame.step in self._checks:
                    self._checks[frame.step](peer, bytes(frame.payload))
            case Kind.DONE:
                # a barrier lies between two runs: nobody can be more than one ahead
                if frame.step != self._done.get(peer, -1) + 1 or frame.step > self._said + 1:
                    raise ProtocolViolation("said that it was done with another run", culprit=peer)
                word = bytes(frame.payload)
                if self._transcript is not None:
                    word = self._transcript.ended(peer, frame.step, word)
                if len(word) > MAX_WORD:
                    raise ProtocolViolation("sent a malformed end of a chunk", culprit=peer)
                self._done[peer] = frame.step
                self._words[peer, frame.step] = word
            case Kind.ABORT:
                told = decode_abort(frame.payload, peer)
                self._gone.add(peer)
                self.online = self.online or frame.step > 0
                # A spare party may leave for whatever reason, but not as a witness of what another one did.
                code = BY_CODE.get(told.code, TransportError)
                own = told.culprit in (None, peer) or issubclass(code, TransportError)
                if own and self._give_up(TransportError("gave up", culprit=peer)):
                    return
                named = (told.culprit or peer).split(" or ")
                if not {*named} <= {self.endpoint.name, *self.endpoint.peers}:
                    raise ProtocolViolation("blames somebody who is no party", culprit=peer)
                hint = None if named == [peer] else f"this is what {peer} says"
                self._told = code(told.message, culprit=" or ".join(named), hint=hint)
                raise self._told
            case Kind.BYE:
                self._gone.add(peer)
                if self._done.get(peer, -1) < self.inference:
                    raise TransportError("left before the end", culprit=peer)
            case Kind.ALIVE:
                pass
