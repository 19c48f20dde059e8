"""The helper of exact mode: deals as in `mpc`, and knows no masks of weights, for there are none."""

from __future__ import annotations

from privinfer.backends.base import Play
from privinfer.backends.mpc import helper
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import dealing, rescale
from privinfer.protocols.mpc.wires import MaskPair


class Helper(helper.Helper):
    """Runs the program over masks alone."""

    def setup(self) -> Play:
        """Agree on a seed with each evaluator."""
        yield from self._agree_on_seeds()

    def _deal(self, step: fp.Step, dealer: dealing.Dealer, xs: list[MaskPair]) -> MaskPair:
        if isinstance(step.operation, fp.Bilinear):
            shape = (len(xs[0].first), *step.type.shape)
            return rescale.deal(step, step.operation.shift, dealer, shape)
        return super()._deal(step, dealer, xs)
