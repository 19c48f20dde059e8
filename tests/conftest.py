"""Shared setup: the repository on the path, reproducible hypothesis runs, slow tests last."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# The same examples on every machine; how long one takes says nothing about whether it is right.
settings.register_profile(
    "privinfer",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("privinfer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, so that a mistake shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cells of the adversarial matrix were played."""
    done = [r for rs in terminalreporter.stats.values() for r in rs if getattr(r, "when", None) == "call"]
    cells = [v for r in done for k, v in r.user_properties if k == "cells"]
    if cells:
        noticed, trusted = (sum(column) for column in zip(*cells, strict=True))
        told = (
            f"adversarial matrix: {noticed + trusted} cells, {trusted} of them trusted to a semi-honest party"
        )
        terminalreporter.write_line(told)
