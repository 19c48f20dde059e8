"""Cost, trust and precision of a plan before it runs."""

from __future__ import annotations

from privinfer.plan.estimate import Choice, Estimate, estimate

__all__ = ["Choice", "Estimate", "estimate"]
