"""Limits and files of a serving party, without a network."""

import re
import threading
import time
from types import SimpleNamespace

import pytest

from privinfer.errors import ConfigError, InputError, RefusedError, ReplayError
from privinfer.runtime import policy as po
from privinfer.session import Identity
from privinfer.session.template import Template
from tests.support.town import lay_out


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("town"), per_patient=1, per_hour=3)[0]


@pytest.fixture(scope="module")
def template(town):
    return Template.load(town.template)


@pytest.fixture(scope="module")
def config(town):
    return po.Config.load(town.config("hospital"), "hospital")


@pytest.fixture
def alice(town):
    return Identity.load(town.folder / "alice.key").public


def test_match_gives_what_this_server_would_seal(config, template, alice):
    manifest = template.seal(alice)
    found, service, patient = po.Policy(config).match(manifest.raw)
    assert found.raw == manifest.raw
    assert (service.name, patient) == ("hospital", alice)
    po.Policy(config).admits(found, service, patient)
    with pytest.raises(ConfigError, match="no template"):
        po.Policy(config).match(manifest.raw + b"\n")


def test_records_are_looked_up_by_name(config, alice):
    service = config.services[0]
    assert service.bring("alice")["xray"].shape == (4,)
    with pytest.raises(InputError) as caught:
        service.bring("bob")
    assert str(service.inputs) not in str(caught.value)


def test_limits_of_one_certificate(config, template, alice, monkeypatch):
    monkeypatch.setattr(po, "_MOMENT_S", 0.01)
    policy = po.Policy(config)
    used = template.seal(alice)
    policy.begin(used, alice)
    with pytest.raises(RefusedError, match="at once"):
        policy.begin(template.seal(alice), alice)
    policy.end(alice)
    with pytest.raises(ReplayError):
        policy.begin(used, alice)
    for _ in range(2):
        policy.begin(template.seal(alice), alice)
        policy.end(alice)
    with pytest.raises(RefusedError, match="an hour") as caught:
        policy.begin(template.seal(alice), alice)
    assert 3500 < caught.value.retry <= 3600
    other = Identity.generate("bob").public
    policy.begin(template.seal(other), other)  # another's limits are another's
    later = time.monotonic() + 3601
    monkeypatch.setattr(po, "time", SimpleNamespace(monotonic=lambda: later))
    policy.begin(template.seal(alice), alice)


def test_who_asks_again_at_once_is_waited_for(config, template, alice):
    policy = po.Policy(config)
    policy.begin(template.seal(alice), alice)
    later = threading.Timer(0.05, policy.end, [alice])
    later.start()
    policy.begin(template.seal(alice), alice)
    later.join()


def test_what_is_remembered_is_bounded(config, template, monkeypatch):
    monkeypatch.setattr(po, "_REMEMBERED", 4)
    policy = po.Policy(config)
    for k in range(9):
        one = Identity.generate(f"p{k}").public
        policy.begin(template.seal(one), one)
        policy.end(one)
    assert len(policy._seen) == len(policy._times) == 4
    assert not policy._running


def test_places_are_given_in_order():
    slots = po.Slots(1, queue=3)
    slots.take(1)
    order, threads = [], []

    def take(k):
        slots.take(20)
        order.append(k)
        slots.give()

    for k in range(3):
        threads.append(threading.Thread(target=take, args=(k,)))
        threads[-1].start()
        while slots.waiting <= k:
            time.sleep(0.001)
    with pytest.raises(RefusedError, match="wait already") as caught:
        slots.take(1)
    assert caught.value.retry > 0
    slots.give()
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2]
    assert slots.taken == slots.waiting == 0


def test_waiting_ends():
    slots = po.Slots(1, queue=1)
    slots.take(1)
    with pytest.raises(RefusedError, match="in time"):
        slots.take(0.01)
    assert slots.waiting == 0
    assert not slots.idle(0.01)
    slots.close()
    with pytest.raises(RefusedError, match="stopping"):
        slots.take(1)
    slots.give()
    assert slots.idle(0.01)


@pytest.mark.parametrize(
    ("name", "pattern", "into", "said"),
    [
        ("hospital", "version = 1", "version = 2", "version"),
        ("hospital", "version = 1", "version = 1\nport = 3", "port is not a known key"),
        ("hospital", "per_hour = 3", "per_hour = 0", "per_hour"),
        ("hospital", "version = 1", 'version = 1\nlisten = "nowhere"', "listen is not host:port"),
        ("hospital", 'inputs = "inputs"\n', "", "inputs is for parties"),
        ("helper", r"\Z", 'inputs = "inputs"\n', "inputs is for parties"),
        ("helper", r"\Z", 'model = "../../model.onnx"\n', "model"),
        ("startup", "model = .*\n(.|\n)*", "", "model is for the model owner"),
        ("startup", r"xray = \"-4:4\"", 'xray = "-4:5"', "not the one of the template"),
        ("startup", r"xray = \"-4:4\"", 'xray = "low"', "LOW:HIGH"),
        ("hospital", 'patients = ".*"', 'patients = "any"', "cannot be any"),
        ("hospital", 'patients = ".*"', 'patients = "none"', "not a folder"),
        ("hospital", r'identity = ".*"', 'identity = "../helper/party.key"', "identity is of helper"),
        ("hospital", r"\[\[services\]\](.|\n)*", "services = []", "services is empty"),
    ],
)
def test_files_that_are_refused(town, name, pattern, into, said):
    file = town.config(name)
    text, count = re.subn(pattern, into, file.read_text(), count=1)
    assert count
    bad = file.with_name("bad.toml")
    bad.write_text(text)
    with pytest.raises(ConfigError, match=said):
        po.Config.load(bad, name)


def test_another_certificate_than_the_templates(town, tmp_path):
    new = Identity.generate("helper")
    new.save(tmp_path / "new.key")
    bad = town.config("helper").with_name("bad.toml")
    bad.write_text(town.config("helper").read_text().replace("party.key", str(tmp_path / "new.key")))
    with pytest.raises(ConfigError, match="another certificate"):
        po.Config.load(bad, "helper")
