"""Templates: the same bytes for the same person everywhere, and drafts that are none."""

import re

import pytest

from privinfer.errors import ConfigError
from privinfer.session import Identity, Manifest
from privinfer.session.template import Template
from tests.adversarial import stage


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """A draft of the stage's session whose last party is open."""
    folder = tmp_path_factory.mktemp("draft")
    servers = [n for n in stage.NAMES if n != "patient"]
    text = stage.manifest().dumps()
    head = text[: text.index("[[parties]]")]
    head = "\n".join(line for line in head.splitlines() if not line.startswith(("session", "model =")))
    entries = []
    for k, name in enumerate(servers):
        (folder / f"{name}.crt").write_text(stage.identity(name).certificate_pem)
        address = f"127.0.0.1:{7100 + k}"
        entries.append(
            f'[[parties]]\nname = "{name}"\naddress = "{address}"\ncertificate_file = "{name}.crt"\n'
        )
    (folder / "draft.toml").write_text("\n".join([head, *entries, '[[parties]]\nname = "patient"\n']))
    return folder / "draft.toml"


@pytest.fixture(scope="module")
def template(draft):
    return Template.from_draft(draft, stage.model().architecture.digest())


def test_all_who_hold_it_seal_the_same_bytes(template, tmp_path):
    (tmp_path / "t.toml").write_text(template.dumps())
    other = Template.load(tmp_path / "t.toml")
    assert other.dumps() == template.dumps()
    alice = Identity.generate("alice").public
    one = template.seal(alice)
    assert other.seal(alice, one.session).raw == one.raw
    assert Manifest.loads(one.raw).receivers == {"risk": "alice"}
    assert one.names[-1] == "alice"
    assert one.party("alice").identity == alice
    assert template.seal(alice).session != one.session


def test_every_name_of_the_open_party_is_replaced(draft, tmp_path):
    text = draft.read_text()
    text += '\n[terms]\npurpose = "patient"\nconsent = "patient"\n'
    text += f'weights = "{"5a" * 32}"\n'
    for file in draft.parent.glob("*.crt"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "d.toml").write_text(text)
    template = Template.from_draft(tmp_path / "d.toml", stage.model().architecture.digest())
    sealed = template.seal(Identity.generate("alice").public)
    assert sealed.terms.consent == "alice"
    assert sealed.terms.purpose == "patient"  # a text, not a party


def test_nobody_takes_a_servers_name(template):
    with pytest.raises(ConfigError, match="another party of this template"):
        template.seal(Identity.generate("hospital").public)


@pytest.mark.parametrize(
    ("pattern", "into", "said"),
    [
        (r'name = "patient"\n', 'name = "patient"\naddress = "127.0.0.1:9"\n', "one that asks"),
        (r'risk = "patient"', 'risk = "hospital"', "receiver of every output"),
        (r'xray = "hospital"', 'xray = "patient"', "cannot bring an input"),
        (r'\[\[parties\]\]\nname = "patient"\n', "", "one that asks"),
        (r'helper = "helper"', 'helper = "nobody"', "not listed"),
    ],
)
def test_what_is_no_template(draft, tmp_path, pattern, into, said):
    for file in draft.parent.glob("*.crt"):
        (tmp_path / file.name).write_text(file.read_text())
    text, count = re.subn(pattern, into, draft.read_text())
    assert count
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Template.from_draft(tmp_path / "d.toml", stage.model().architecture.digest()).sample()


def test_a_template_needs_its_model(draft):
    with pytest.raises(ConfigError, match="has no model"):
        Template.load(draft)
