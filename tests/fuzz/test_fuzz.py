"""A short run of every fuzzed parser: only PrivinferError comes out, and memory stays below the cap."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import pytest

from tests.fuzz import corpus, mutate, targets

SECONDS = 0.25
LEAST = 60  # inputs, on however slow a machine


def test_every_target_has_a_corpus():
    assert {folder.name for folder in corpus.FOLDER.iterdir()} | {"identity"} == set(targets.TARGETS)
    for name in targets.TARGETS:
        assert all(len(data) <= corpus.LARGEST for data in corpus.load(name))


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_only_typed_errors(name):
    until = time.monotonic() + SECONDS
    for k, data in enumerate(mutate.mutations(corpus.load(name), seed=1)):
        targets.judge(name, data)
        if k >= LEAST and time.monotonic() > until:
            break


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_memory_stays_below_the_cap(name):
    examples = corpus.load(name)
    targets.judge(name, examples[0])  # what is imported or compiled once does not count
    inputs = list(itertools.islice(mutate.mutations(examples, seed=2), len(examples) + 40))
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            targets.judge(name, data)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= targets.TARGETS[name].cap + 4 * len(data)
    finally:
        tracemalloc.stop()


def test_what_a_stranger_wrote_is_shown_without_control_characters():
    error = targets.PrivinferError("belongs to \x1b[2J\nme", hint="\x07", culprit=None)
    assert error.message == str(error) == "belongs to ?[2J?me"
    assert error.hint == "?"


def test_a_parser_that_breaks_is_found(monkeypatch):
    """The judge is no rubber stamp: a bare KeyError, a wrong name and a flood of memory are findings."""

    def broken(data):
        raise KeyError("x")

    monkeypatch.setitem(targets.TARGETS, "broken", targets.Target(broken))
    with pytest.raises(KeyError):
        targets.judge("broken", b"")

    def nameless(data):
        raise targets.ProtocolViolation("no name")

    monkeypatch.setitem(targets.TARGETS, "broken", targets.Target(nameless, peer=True))
    with pytest.raises(AssertionError, match="names None"):
        targets.judge("broken", b"")
