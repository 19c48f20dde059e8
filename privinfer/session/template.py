"""A template: a session in which one party is open, whoever comes to ask.

It is written as a draft of the session file, with the model's hash under `model`, and with the asking party
last and by name alone. Sealing it for somebody puts that name and certificate in the open place and draws a
session identifier. Parties that hold the same template and know for whom it was sealed get the same bytes.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Self

from privinfer.errors import ConfigError
from privinfer.session import files, toml
from privinfer.session.identity import Identity, PublicIdentity, check_name
from privinfer.session.manifest import Manifest

_ADDRESS = "127.0.0.1:1"  # who asks is last in the list: it dials all others, and nobody dials it


class Template:
    """A session for whoever asks.

    Attributes
    ----------
    open : str
        How the template calls the party that asks.

    Raises
    ------
    ConfigError
        It is not a draft, has no model, or its last party is not open.
    """

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        parties = content.get("parties")
        if not isinstance(content.get("model"), str):
            raise ConfigError(
                "the template has no model", hint="`privinfer seal DRAFT --template` makes one of a draft"
            )
        if not isinstance(parties, list) or not parties or not isinstance(parties[-1], dict):
            raise ConfigError("the template has no parties")
        if set(parties[-1]) != {"name"}:
            raise ConfigError(
                "the last party of a template is the one that asks",
                hint="give it a name and nothing else: certificate and address come with whoever asks",
            )
        self.open = check_name(parties[-1]["name"], "name of the party that asks")
        receivers = content.get("receivers")
        if not isinstance(receivers, dict) or set(receivers.values()) != {self.open}:
            raise ConfigError(f"{self.open} has to be the receiver of every output of a template")
        inputs = content.get("inputs")
        if not isinstance(inputs, dict) or self.open in inputs.values():
            raise ConfigError(f"{self.open} cannot bring an input to a template")
        self._content, self._folder = content, folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a template; certificates that it names by file are looked up beside it."""
        file = Path(path)
        made = cls(toml.parse(files.read(file, toml.MAX_FILE, "template")), file.parent)
        # a draft's certificates are read once: nobody changes them under a server that runs
        for entry in made._content["parties"][:-1]:
            if isinstance(entry, dict) and isinstance(name := entry.get("certificate_file"), str):
                entry["certificate"] = files.read(file.parent / name, 1 << 16, "certificate").decode(
                    "ascii", "replace"
                )
                del entry["certificate_file"]
        return made

    @classmethod
    def from_draft(cls, path: str | os.PathLike[str], model_hash: str) -> Self:
        """Read a draft of a template and give it a model, by the SHA-256 of its architecture."""
        file = Path(path)
        content = toml.parse(files.read(file, toml.MAX_FILE, "draft"))
        if content.setdefault("model", model_hash) != model_hash:
            raise ConfigError("model is not the one the template is for")
        return cls(content, file.parent)

    def dumps(self) -> str:
        """Write the template in one form, certificates included."""
        head, mark, last = self.sample().dumps().rpartition("[[parties]]\n")
        lines = [line for line in head.splitlines() if not line.startswith("session = ")]
        return "\n".join([*lines, mark + last.splitlines()[0], ""])

    def sample(self) -> Manifest:
        """Seal it for a stranger, which shows whether it can be sealed at all."""
        return self.seal(Identity.generate(self.open, days=1).public)

    def seal(self, who: PublicIdentity, session: str | None = None) -> Manifest:
        """Make the session for one party.

        Parameters
        ----------
        who : PublicIdentity
            It asks, and receives every output.
        session : str, optional
            Identifier, 32 hex digits; a fresh one by default.

        Raises
        ------
        ConfigError
            The name is another party's, a certificate is out of date, or the template contradicts itself.
        """

        def named(value: object) -> object:
            if isinstance(value, list):
                return [named(one) for one in value]
            return who.name if value == self.open else value

        content = dict(self._content)
        content.pop("session", None)
        for table in ("roles", "receivers", "terms"):
            if isinstance(found := content.get(table), dict):
                content[table] = {
                    key: value if key == "purpose" else named(value) for key, value in found.items()
                }
        asking = {"name": who.name, "address": _ADDRESS, "certificate": who.pem}
        content["parties"] = [*content["parties"][:-1], asking]
        if any(isinstance(p, dict) and p.get("name") == who.name for p in content["parties"][:-1]):
            raise ConfigError(f"{who.name} is another party of this template", culprit=who.name)
        top = toml.Table(content, "")
        return Manifest._build(top, session or secrets.token_hex(16), top.text("model"), self._folder)
