"""A party's evidence of a join: its transcript and what it committed to, written when it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from privinfer.backends.base import Phase
from privinfer.errors import ConfigError, PrivinferError
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.commitment import Opening
from privinfer.protocols.mpc.inputs import SIGNED as MASKED
from privinfer.runtime.greeting import PAIRS
from privinfer.runtime.post import Office
from privinfer.runtime.transcript import Transcript, Verify, check_installed
from privinfer.session.agreement import Agreement
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest
from privinfer.session.opening import Opened
from privinfer.session.receipt import Entered, Receipt
from privinfer.transport.frames import Kind


def check(manifest: Manifest, receipt: str | os.PathLike[str] | None) -> None:
    """Raise ConfigError where this party could not keep the receipt that it is asked for."""
    if manifest.terms.receipts:
        check_installed()
    if receipt is None:
        return
    if not manifest.terms.receipts:
        raise ConfigError(
            "this session keeps no receipts", hint="all parties agree to them: receipts = true under [terms]"
        )
    path = Path(receipt)
    for one in (path, beside(path)):
        if one.exists():
            raise ConfigError(
                f"{one} exists already", hint="evidence is never overwritten; name another file"
            )
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write receipt {path}", hint="is there such a folder?")


def beside(receipt: Path) -> Path:
    """Where a receipt's opening lies: `.opening` in the place of `.receipt` or `.cbor`, or behind it."""
    if receipt.suffix in (".receipt", ".cbor"):
        return receipt.with_suffix(".opening")
    return receipt.with_name(f"{receipt.name}.opening")


class Evidence:
    """Kept where the session's terms ask for receipts.

    Parameters
    ----------
    manifest : Manifest
    identity : Identity
        This party's.
    verify : callable
        With another party's key.
    path : path, optional
        Where the receipt will be; without it this party signs for the others and keeps nothing.
    """

    def __init__(
        self, manifest: Manifest, identity: Identity, verify: Verify, path: str | os.PathLike[str] | None
    ) -> None:
        self._manifest, self._identity, self._verify = manifest, identity, verify
        self.path = None if path is None else Path(path)
        self._agreement: Agreement | None = None
        self._transcript: Transcript | None = None
        self._entered: list[Entered] = []
        self._inputs: dict[tuple[int, str], Opening] = {}
        self._signatures: dict[str, bytes] = {}

    def sign(self, message: bytes) -> bytes:
        """Sign as this party, and keep what an auditor will need to see masked inputs again."""
        signature = self._identity.sign(message)
        if self.path is not None and message.startswith(MASKED):
            self._signatures[hashlib.sha256(message).hexdigest()] = signature
        return signature

    def begin(self, office: Office, agreement: Agreement) -> None:
        """Send every peer half of a key; whatever follows is noted."""
        self._agreement = agreement
        made = self._transcript = Transcript(
            self._identity.name,
            office.endpoint.peers,
            agreement.digest,
            self._identity.sign,
            self._verify,
            keep=self.path is not None,
        )
        office.note(made)
        office.expect(PAIRS, made.take_half)  # at once: who has heard all may go on before this party has
        office.tell_each(Kind.HELLO, Phase.SETUP, PAIRS, made.halves)

    def exchange(self, office: Office) -> None:
        """Wait for the peers' halves."""
        office.hear(PAIRS, set(office.endpoint.peers))

    @property
    def _made(self) -> Transcript:
        if self._transcript is None:
            raise ConfigError("a transcript begins with the agreement")
        return self._transcript

    def check_room(self) -> None:
        """Raise ConfigError where the receipt has no room for another run."""
        self._made.check_room()

    def opened(self, run: int, openings: Mapping[str, Opening]) -> None:
        """Keep the openings of this party's inputs."""
        if self.path is not None:
            self._inputs.update({(run, name): opening for name, opening in openings.items()})

    def entered(self, run: int, dealt: str, signed: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Keep what all parties said when a run began."""
        said = {name: content for name, (content, _) in signed.items()}
        if self.path is not None:
            signatures = {name: signature for name, (_, signature) in signed.items()}
            self._entered.append(Entered(run, dealt, said, signatures))

    def receipt(
        self,
        missing: set[str],
        error: PrivinferError | None = None,
        joint: PublicKey | None = None,
    ) -> Receipt | None:
        """The receipt so far; None before there was an agreement."""
        if self._agreement is None or self._transcript is None:
            return None
        keys = {peer: key.check() for peer, key in self._transcript.keys.items()}
        keys = dict.fromkeys(self._transcript.halves, bytes(32)) | keys  # without where no half came
        return Receipt(
            self._identity.name,
            self._agreement,
            {p.name: p.identity.pem for p in self._manifest.parties},
            keys,
            self._transcript.started,
            self._entered,
            self._transcript.legs(),
            sorted(missing),
            None if joint is None else joint.digest(),
            None if error is None else error.code,
            None if error is None else error.culprit,
        )

    def write(
        self,
        missing: set[str],
        error: PrivinferError | None,
        weights: Opening | None,
        joint: PublicKey | None,
    ) -> None:
        """Write the receipt, and beside it the opening where this party brought something.

        Raises
        ------
        ConfigError
            A file cannot be written.
        """
        found = None if self.path is None else self.receipt(missing, error, joint)
        if self.path is None or found is None:
            return
        if self._inputs or weights is not None:
            secret = Opened(
                found.agreement.digest,
                self._identity.name,
                {peer: key.expose() for peer, key in self._made.keys.items()},
                {key: opening.expose() for key, opening in self._inputs.items()},
                None if weights is None else weights.expose(),
                None if joint is None or not self._inputs else joint.to_bytes(),
                self._signatures,
            )
            _write_new(beside(self.path), secret.to_bytes(), 0o600)
        _write_new(self.path, found.to_bytes(self._identity), 0o644)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet: whole, or not at all."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {(error.strerror or 'error').lower()}") from None
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise ConfigError(f"cannot write {path}: {(error.strerror or 'error').lower()}") from None
