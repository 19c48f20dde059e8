"""What one party can say of a run afterwards: numbers, never contents."""

from __future__ import annotations

import resource
import sys
from typing import Any

from privinfer.backends import ckks, crypten
from privinfer.backends.base import Phase
from privinfer.graph import ir
from privinfer.plan.trust import sees, trust
from privinfer.session.manifest import Manifest
from privinfer.transport.endpoint import Counters

SCHEMA = "privinfer.report/1"


def of_party(manifest: Manifest, name: str, architecture: ir.Architecture) -> dict[str, Any]:
    """What a party's report says of its session, whatever the run."""
    return {
        "schema": SCHEMA,
        "backend": manifest.backend,
        "session": manifest.session,
        "party": name,
        "roles": manifest.roles_of(name),
        "sees": sees(manifest, name),
        "precision": precision(manifest, architecture),
        "trust": trust(manifest),
        "insecure": list(manifest.insecure),
    }


def precision(manifest: Manifest, architecture: ir.Architecture) -> dict[str, Any]:
    """How numbers are represented and what error is declared."""
    if manifest.backend == crypten.NAME:
        return crypten.precision(architecture)
    exact = manifest.nonlinear == ckks.EXACT
    if manifest.backend == ckks.NAME and not exact:
        return ckks.precision(manifest, architecture)
    declared = architecture.precision
    said = {
        "fractional_bits": declared.fractional_bits,
        "comparison_bits": declared.comparison_bits,
        "basis": declared.basis,
        "declared_error_bound": None
        if declared.error_bound is None
        else declared.error_bound + manifest.terms.release.rounding,
    }
    # what products stray by under encryption, in units of their last place; the bound has it in it
    return said | ({"nonlinear": ckks.EXACT, "product_units": ckks.product_units(manifest)} if exact else {})


def traffic(
    counters: Counters, before: dict[str, dict[tuple[str, int], int]] | None = None
) -> dict[str, Any]:
    """Bytes by direction, phase and peer since an earlier snapshot; frame headers included, TLS not."""
    now = counters.snapshot()
    found: dict[str, Any] = {}
    for direction, table in (("sent", "bytes_sent"), ("received", "bytes_received")):
        rows: dict[str, dict[str, int]] = {p.name.lower(): {} for p in Phase}
        for (peer, phase), count in now[table].items():
            if phase not in Phase.__members__.values():
                continue  # a peer chose it
            moved = count - (before[table].get((peer, phase), 0) if before else 0)
            if moved:
                rows[Phase(phase).name.lower()][peer] = moved
        found[direction] = rows
    return found


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes."""
    try:  # ru_maxrss of a child begins with its parent's
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
