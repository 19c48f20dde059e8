"""The model owner: masks its weights once a session and leaves; it never learns an input or a result."""

from __future__ import annotations

import hmac
import secrets

from privinfer.backends.base import Idle, Play, Private, Send, Table
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError, IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.commitment import digest_of_weights
from privinfer.protocols.mpc import linear
from privinfer.protocols.randomness import SEED_BYTES, Scope, Seed, Stream, derive


class ModelOwner(Idle):
    """Sends W^ to both evaluators, the bias shares' seeds, and the masks' seeds to the helper."""

    def __init__(self, program: fp.Program, table: Table, private: Private) -> None:
        if private.model is None:
            raise ConfigError("the model owner has to bring the model", hint="pass model=")
        self.program, self.model, self.opening = program, private.model, private.weights
        self.scope = Scope(table.session, 0)

    def setup(self) -> Play:
        """Seeds to all three, then each gate's weights."""
        digest = digest_of_weights(self.model)
        if (opening := self.opening) is not None:
            seeds = tuple(opening.seed("weights", k, self.scope.session) for k in range(2))
        else:
            seeds = tuple(Seed.fresh(digest, bytes([k])) for k in range(2))
        streams = Stream(seeds[0], self.scope, "weights"), Stream(seeds[1], self.scope, "weights")
        for evaluator, seed in zip(roles.EVALUATORS, seeds, strict=True):
            yield Send(evaluator, roles.SEEDS, seed.expose())
        yield Send(roles.HELPER, roles.SEEDS, b"".join(s.expose() for s in seeds))
        for step, op in self.program.bilinear():
            frac = self.program.steps[step.inputs[0]].type.frac
            weights = linear.share_weights(step, op, frac, self.model.parameters[step.node], streams)
            masked = weights.masked.tobytes()
            yield Send(roles.E1, step.index, masked)
            yield Send(roles.E2, step.index, masked + weights.second_bias.tobytes())

    def deal(self, scope: Scope, batch: int) -> Play:
        """Keep a piece without content: the weights went with the setup."""
        yield from ()
        return b""

    def keep(self) -> bytes | None:
        """A salted digest of the weights: other weights must not use what was dealt for these."""
        salt = secrets.token_bytes(SEED_BYTES)
        return salt + derive(salt, "weights", digest_of_weights(self.model), size=SEED_BYTES)

    def restore(self, session: bytes, kept: bytes) -> None:
        """Refuse where the weights have changed since."""
        salt, wanted = kept[:SEED_BYTES], kept[SEED_BYTES:]
        if not hmac.compare_digest(
            derive(salt, "weights", digest_of_weights(self.model), size=SEED_BYTES), wanted
        ):
            raise IntegrityError(
                "the store was dealt for other weights", hint="deal again with the weights of today"
            )
