"""Every error privinfer raises on purpose: a stable code, a culprit where there is one, a hint.

Messages never hold tensor contents, seeds or keys; they may hold names, shapes and dtypes. Each code
is explained in ``docs/errors.md``, and the command line exits with :attr:`PrivinferError.exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


def printable(text: str) -> str:
    """What a terminal may be given: names in a stranger's file can hold anything."""
    return "".join(c if c.isprintable() else "?" for c in text)


class PrivinferError(Exception):
    """Root of all errors of this library.

    Parameters
    ----------
    message : str
        What is wrong, in one lower-case line without a full stop.
    culprit : str, optional
        Name of the party at fault, as it stands in the session file.
    hint : str, optional
        What the reader can do about it.
    """

    code: ClassVar[str] = "PI000"
    exit_code: ClassVar[int] = 10

    def __init__(self, message: str, *, culprit: str | None = None, hint: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.culprit = culprit
        self.hint = None if hint is None else printable(hint)

    def __str__(self) -> str:
        return self.message if self.culprit is None else f"{self.message} (culprit: {self.culprit})"


class ConfigError(PrivinferError):
    """A session file, identity or option is wrong or does not agree with the other parties'."""

    code = "PI101"
    exit_code = 11


class ModelUnsupported(PrivinferError):
    """A model holds something privinfer cannot run; the message names the node and what could replace it."""

    code = "PI102"
    exit_code = 12


class InputError(PrivinferError):
    """An input has the wrong name, shape, dtype or range, or holds NaN or infinity."""

    code = "PI103"
    exit_code = 13


class PrecisionError(PrivinferError):
    """A value may not fit the public number of bits; the message names the layer."""

    code = "PI104"
    exit_code = 14


class TransportError(PrivinferError):
    """A party never came, was lost, or stayed silent past the deadline."""

    code = "PI201"
    exit_code = 21


class ProtocolViolation(PrivinferError):
    """A party sent something the protocol does not allow at this point.

    Parameters
    ----------
    message : str
        What is wrong.
    culprit : str, optional
        The party that sent it.
    session : str, optional
        Session identifier.
    round : int, optional
        Round in which it happened.
    step : str, optional
        Step of the protocol.
    hint : str, optional
        What the reader can do about it.
    """

    code = "PI202"
    exit_code = 22

    def __init__(
        self,
        message: str,
        *,
        culprit: str | None = None,
        session: str | None = None,
        round: int | None = None,  # noqa: A002 - the field's name
        step: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, culprit=culprit, hint=hint)
        self.session = session
        self.round = round
        self.step = step


class IntegrityError(PrivinferError):
    """Something that must be used once was used twice, or a stored object does not match its digest."""

    code = "PI203"
    exit_code = 23


class ReplayError(PrivinferError):
    """A message of another session or an earlier run was presented again."""

    code = "PI204"
    exit_code = 24


class ConsentError(PrivinferError):
    """A use of data that nobody agreed to."""

    code = "PI301"
    exit_code = 31


class RefusedError(PrivinferError):
    """A serving party declined a session: it is full, stops, or its policy does not admit who asks.

    Attributes
    ----------
    retry : float
        Seconds after which asking again may help; 0: never.
    """

    code = "PI302"
    exit_code = 32
    retry: float = 0.0


BY_CODE: dict[str, type[PrivinferError]] = {
    cls.code: cls
    for cls in (
        PrivinferError,
        ConfigError,
        ModelUnsupported,
        InputError,
        PrecisionError,
        TransportError,
        ProtocolViolation,
        IntegrityError,
        ReplayError,
        ConsentError,
        RefusedError,
    )
}
