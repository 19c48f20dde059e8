"""Fuzz one parser, or write the corpus anew.

    python -m tests.fuzz --seconds 600 TARGET     # with coverage where atheris is installed
    python -m tests.fuzz --write
    python -m tests.fuzz                          # names of the targets

What a parser must not have been given lies afterwards in crash-TARGET.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

MEMORY_MIB = 1024


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description="Fuzz a parser of hostile bytes.")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--without-coverage", action="store_true")
    parser.add_argument("--write", action="store_true", help="make the corpus anew")
    asked = parser.parse_args()
    if asked.write:
        from tests.fuzz import corpus

        corpus.write()
        return 0
    if not asked.without_coverage and asked.target:
        try:
            import atheris
        except ImportError:
            print("atheris is not installed: mutations without coverage")
        else:
            return _with_coverage(atheris, asked)
    from tests.fuzz import targets

    if asked.target not in targets.TARGETS:
        print(*targets.TARGETS, sep="\n")
        return 2
    return _without(asked)


def _with_coverage(atheris, asked) -> int:
    with atheris.instrument_imports(include=["privinfer", "cbor2", "tomllib"]):
        from tests.fuzz import corpus, targets
    place = targets.folder()  # the child's as well, which cannot clear it away
    child = os.fork()  # libFuzzer ends its process
    if not child:
        with tempfile.TemporaryDirectory() as found:
            for k, data in enumerate(corpus.load(asked.target)):
                (Path(found) / str(k)).write_bytes(data)
            options = [
                f"-max_total_time={int(asked.seconds)}",
                f"-seed={asked.seed & 0x7FFFFFFF}",
                f"-rss_limit_mb={MEMORY_MIB}",
                "-timeout=10",
                "-max_len=65536",
                f"-artifact_prefix=crash-{asked.target}-",
                "-print_final_stats=1",
            ]
            atheris.Setup([sys.argv[0], *options, found], lambda data: targets.judge(asked.target, data))
            atheris.Fuzz()
    _, status = os.waitpid(child, 0)
    shutil.rmtree(place, ignore_errors=True)
    return os.waitstatus_to_exitcode(status)


def _without(asked) -> int:
    import resource

    mutate = importlib.import_module("tests.fuzz.mutate")
    corpus = importlib.import_module("tests.fuzz.corpus")
    targets = importlib.import_module("tests.fuzz.targets")
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY_MIB << 20, resource.RLIM_INFINITY))
    until, count = time.monotonic() + asked.seconds, 0
    for data in mutate.mutations(corpus.load(asked.target), asked.seed):
        try:
            targets.judge(asked.target, data)
        except BaseException:
            Path(f"crash-{asked.target}").write_bytes(data)
            traceback.print_exc()
            print(f"{asked.target}: input {count} of seed {asked.seed}, in crash-{asked.target}")
            return 1
        count += 1
        if time.monotonic() > until:
            break
    print(f"{asked.target}: {count} inputs, seed {asked.seed}, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
