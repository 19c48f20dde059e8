"""Receipts of one join held against each other, and against the claims that their parties signed in them.

What a party signed for its peer lies in the peer's receipt. So a receipt that was changed afterwards is
convicted by its own party's signature; where two receipts differ and both parties stand by them, or neither
had signed yet, all that is proven is that one of the two lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from privinfer.errors import ConfigError
from privinfer.session.receipt import Claim, Entry, Leg, Mark, Receipt


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not agree.

    Attributes
    ----------
    text : str
        What it is, one line.
    suspects : tuple of str
        Who may be at fault.
    proven_by : str or None
        Party whose signature proves it against the only suspect.
    leg : int
        In which inference of the join, counted from 0; -1 where it belongs to none.
    message : int or None
        Which message of the pair, counted from 0 in the direction that `text` names.
    time : int
        Microseconds since 1970 by the receipt that tells: orders findings of one leg, proves nothing.
    """

    text: str
    suspects: tuple[str, ...]
    proven_by: str | None = None
    leg: int = -1
    message: int | None = None
    time: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of holding receipts against each other.

    Attributes
    ----------
    receipts : dict
        Party to its receipt.
    findings : list of Finding
        The earliest first; empty where all agree.
    agreed : dict
        Sender and receiver to the number of messages on which both receipts agree.
    """

    receipts: dict[str, Receipt]
    findings: list[Finding]
    agreed: dict[tuple[str, str], int]


def compare(receipts: Sequence[Receipt]) -> Comparison:
    """Hold receipts of one join against each other; each was read by :func:`receipt.load`.

    Parameters
    ----------
    receipts : sequence of Receipt
        One or more.

    Raises
    ------
    ConfigError
        They are of different joins.
    """
    if len({one.agreement.digest for one in receipts}) != 1:
        raise ConfigError(
            "these receipts are of different joins",
            hint="compare the agreements that `verify` prints for each",
        )
    findings: list[Finding] = []
    by_party: dict[str, Receipt] = {}
    for one in receipts:
        if one.party in by_party and one.body() != by_party[one.party].body():
            text = f"{one.party} signed two receipts of the same join"
            findings.append(Finding(text, (one.party,), one.party))
        by_party.setdefault(one.party, one)
    for one in by_party.values():
        findings += _alone(one)
    findings += _statements(by_party)
    agreed: dict[tuple[str, str], int] = {}
    for sender in by_party.values():
        for receiver in by_party.values():
            if sender is not receiver:
                count, found = _pair(sender, receiver)
                agreed[sender.party, receiver.party] = count
                findings += found + _held(sender, receiver)
    findings.sort(key=lambda f: (f.leg, f.message is None, f.time))
    return Comparison(by_party, _settled(findings), agreed)


def _settled(findings: list[Finding]) -> list[Finding]:
    """Without what only follows: of the same leg, where somebody is convicted or a message is known."""
    convicted = {(f.leg, f.suspects[0]) for f in findings if f.proven_by is not None}
    known = {(f.leg, frozenset(f.suspects)) for f in findings if f.message is not None}
    seen: set[tuple[int, str]] = set()
    kept = []
    for one in findings:
        if one.proven_by is None and any((one.leg, name) in convicted for name in one.suspects):
            continue
        if one.message is None and one.proven_by is None and (one.leg, frozenset(one.suspects)) in known:
            continue
        key = (one.leg, one.text)
        if key not in seen:
            kept.append(one)
            seen.add(key)
    return kept


def _alone(one: Receipt) -> list[Finding]:
    """Whether a receipt's chains are those that its party and its peers signed, peer by peer."""
    found = []
    for peer in one.peers():
        sent, received = list(one.marks(peer, sent=True)), list(one.marks(peer, sent=False))
        for k, leg in enumerate(one.legs):
            theirs = _claim(leg.peers, peer)
            own = _claim(leg.own, peer)
            if own is not None and (own.sent, own.received) != (sent[k], received[k]):
                found.append(_convicted(one.party, peer, k))
                break
            if theirs is not None and (theirs.received, theirs.sent) != (sent[k], received[k]):
                where = f"at the end of inference {k}"
                text = f"{one.party}'s receipt is not what {peer} signed for {one.party} {where}"
                found.append(Finding(text, (one.party, peer), None, k))
                break
    return found


def _held(author: Receipt, holder: Receipt) -> list[Finding]:
    """Whether a receipt is what its party signed, by the copies that a peer has of it."""
    pair = author.marks(holder.party, sent=True), author.marks(holder.party, sent=False)
    for k, (leg, sent, received) in enumerate(zip(holder.legs, *pair, strict=False)):
        claim = _claim(leg.peers, author.party)
        if claim is not None and (claim.sent, claim.received) != (sent, received):
            return [_convicted(author.party, holder.party, k)]
    return []


def _convicted(party: str, peer: str, leg: int) -> Finding:
    text = f"{party}'s receipt is not what {party} signed for {peer} at the end of inference {leg}"
    return Finding(text, (party,), party, leg)


def _claim(claims: Mapping[str, bytes], peer: str) -> Claim | None:
    return Claim.parse(claims[peer]) if peer in claims else None


def _statements(receipts: Mapping[str, Receipt]) -> list[Finding]:
    """Whether all heard the same when a run began."""
    found = []
    heard: dict[tuple[int, str], bytes] = {}
    for one in receipts.values():
        for entered in one.entered:
            for party, content in entered.said.items():
                if heard.setdefault((entered.run, party), content) != content:
                    text = f"{party} signed two statements when run {entered.run} began"
                    found.append(Finding(text, (party,), party))
    return found


def _pair(sender: Receipt, receiver: Receipt) -> tuple[int, list[Finding]]:
    """Message by message what one sent and the other got; stops at the first that differs."""
    s, r = sender.party, receiver.party
    sent, received = list(sender.marks(r, sent=True)), list(receiver.marks(s, sent=False))
    count = 0
    for k, (left, right) in enumerate(zip_longest(sender.legs, receiver.legs)):
        if left is None or right is None:
            claims, name = (left.peers, r) if left is not None else (right.peers, s)
            if name in claims:  # else it was lost before the other
                text = f"{name}'s receipt leaves out an inference whose end {name} signed"
                return count, [Finding(text, (name,), name, k)]
            break
        gone = list(Entry.split(left.sent.get(r, b"")))
        came = list(Entry.split(right.received.get(s, b"")))
        differs = next(
            (j for j, (a, b) in enumerate(zip(gone, came, strict=False)) if a.core != b.core), None
        )
        ended = r in left.peers or s in right.peers  # before, what was sent may not have arrived
        if differs is None and (len(came) > len(gone) or (ended and len(came) < len(gone))):
            differs = min(len(gone), len(came))
        if differs is None:
            count += len(came)
            if not ended:
                break
            continue
        there = [(sender, gone), (receiver, came)]
        time = min(one.started + list_[differs].time for one, list_ in there if differs < len(list_))
        text = f"{s} -> {r} diverged first at message {count + differs} ({_what(gone, came, differs)})"
        return count + differs, [
            _judge(text, left, right, (s, r), (sent[k], received[k]), k, count + differs, time)
        ]
    return count, []


def _what(gone: Sequence[Entry], came: Sequence[Entry], at: int) -> str:
    if at >= len(gone):
        return "received, never sent"
    if at >= len(came):
        return "sent, never received"
    _, phase, _, step, size, tag = gone[at].fields
    _, phase2, _, step2, size2, tag2 = came[at].fields
    if (phase, step) != (phase2, step2):
        return "another step"
    if size != size2:
        return f"{size} bytes sent, {size2} received"
    return "contents" if tag != tag2 else "another kind or channel"


def _judge(
    text: str,
    left: Leg,
    right: Leg,
    names: tuple[str, str],
    marks: tuple[Mark, Mark],
    leg: int,
    message: int,
    time: int,
) -> Finding:
    """Whose own signature contradicts its receipt."""
    s, r = names
    signed_s, signed_r = _claim(right.peers, s), _claim(left.peers, r)
    liars = []
    if signed_s is not None and signed_s.sent != marks[0]:
        liars.append(s)
    if signed_r is not None and signed_r.received != marks[1]:
        liars.append(r)
    if len(liars) == 1:
        (liar,) = liars
        text += f"; {liar} had signed another account before"
        return Finding(text, (liar,), liar, leg, message, time)
    if liars:
        text += "; both had signed other accounts before"
    elif signed_s is not None and signed_r is not None:
        text += "; both stand by what they signed, one of them lied during the run"
    else:
        text += "; nothing was signed yet, either may have changed it"
    return Finding(text, names, None, leg, message, time)
