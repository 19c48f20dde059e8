"""Bad input: the exact error, the culprit, a message that says what is wrong; in the library and typed."""

import contextlib
import datetime as dt
import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import privinfer
from privinfer.cli.main import main as command
from privinfer.errors import ConfigError, InputError, TransportError
from privinfer.graph import ir
from privinfer.session import Identity, Manifest
from privinfer.session.manifest import Party as Entry
from privinfer.transport import Kind
from tests.adversarial import stage

GOOD = stage.rows()["laboratory"]["blood"]


def wrong(**change):
    return {"blood": GOOD} | change


BAD = {
    "shape": (wrong(blood=np.zeros((1, 4))), r"input 'blood' has shape \(1, 4\)"),
    "too many axes": (wrong(blood=np.zeros((1, 1, 3))), "shape"),
    "no axes": (wrong(blood=np.float64(1.0)), "shape"),
    "complex": (wrong(blood=GOOD.astype(complex)), "dtype complex128"),
    "object": (wrong(blood=GOOD.astype(object)), "dtype object"),
    "text": (wrong(blood=GOOD.astype(str)), "dtype <U"),
    "dates": (wrong(blood=np.zeros((1, 3), "M8[s]")), "dtype datetime64"),
    "nan": (wrong(blood=np.where(GOOD[0, 0] == GOOD, np.nan, GOOD)), "NaN or infinity"),
    "infinity": (wrong(blood=np.where(GOOD[0, 0] == GOOD, np.inf, GOOD)), "NaN or infinity"),
    "too large": (wrong(blood=np.full((1, 3), 4.0000001)), r"'blood': 3 of 3 values lie outside .*\[-4, 4\]"),
    "unknown": (wrong(weight=GOOD), "there is no input 'weight' here"),
    "another's": (wrong(xray=np.zeros((1, 4))), "there is no input 'xray' here"),
    "ragged": (wrong(blood=[[1.0, 2.0], [3.0]]), "input 'blood'"),
    "missing": ({}, "input 'blood' is missing"),
    "none": (None, "input 'blood' is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_owner_refuses_its_own_input(case):
    given, message = BAD[case]
    said, after = [], []

    def hook(source, destination, frame):
        if source == "laboratory":
            if frame.kind is Kind.ABORT:
                said.append(bytes(frame.payload))
            elif frame.kind is Kind.DATA:
                after.append(stage.kind_of(frame))
        return frame

    outcomes = stage.Play(hook=hook, inputs=stage.rows() | {"laboratory": given}).run()
    mine = outcomes.pop("laboratory").error
    assert type(mine) is InputError
    assert mine.culprit == "laboratory"
    assert re.search(message, mine.message), mine.message
    for outcome in outcomes.values():
        assert type(outcome.error) is InputError
        assert outcome.error.culprit == "laboratory"
        assert outcome.error.message == "refused its own input before anything was sent"
    assert not after  # not a byte of the protocol left it
    assert not [s for s in said if b"4.0000001" in s or b"of 3" in s or b"outside" in s]


@pytest.mark.parametrize("case", BAD)
def test_run_local_refuses_it_too(case):
    given, message = BAD[case]
    inputs = stage.rows() | {"laboratory": given}
    with pytest.raises(InputError) as caught:
        privinfer.run_local(stage.model(), inputs, evaluators=(stage.E1, stage.E2), processes=False)
    if case not in ("none", "missing", "another's"):  # these show when all inputs are looked at together
        assert caught.value.culprit == "laboratory", caught.value
    if case not in ("none", "another's"):
        assert re.search(message, caught.value.message), caught.value.message


def test_two_owners_of_one_input():
    inputs = stage.rows() | {"clinic": {"blood": GOOD}}
    with pytest.raises(InputError, match="comes from both 'laboratory' and 'clinic'"):
        privinfer.run_local(stage.model(), inputs, evaluators=(stage.E1, stage.E2), processes=False)


def test_batch_sizes_that_differ():
    inputs = stage.rows(2) | {"laboratory": stage.rows(3)["laboratory"]}
    outcomes = stage.Play(inputs=inputs).run()
    for outcome in outcomes.values():
        assert type(outcome.error) is InputError
        assert outcome.error.culprit == "laboratory"
        assert outcome.error.message == "brings 3 rows where others bring 2"


def test_empty_batch_is_an_answer():
    outcomes = stage.Play(inputs=stage.rows(0)).run()
    assert outcomes["patient"].outputs["risk"].shape == (0, 2)


def test_input_from_a_party_that_owns_none():
    outcomes = stage.Play(inputs=stage.rows() | {"patient": {"blood": GOOD}}).run()
    for outcome in outcomes.values():
        assert type(outcome.error) is InputError
        assert outcome.error.culprit == "patient"


# -- joining ---------------------------------------------------------------------------------------


def join(name, manifest=None, key=None, model=None, **options):
    session = privinfer.Session(manifest or stage.manifest())
    with session.join(name, key or stage.identity(name), model=model, **options):
        pass


def other_ranges():
    return stage.from_onnx(stage.onnx_bytes(), dict.fromkeys(stage.SHAPES, (-5.0, 4.0)))


@pytest.mark.parametrize(
    ("arguments", "message", "culprit"),
    [
        (
            ("patient", None, stage.identity("helper")),
            "not the one the session file has for patient",
            "patient",
        ),
        (("nobody",), "nobody is not a party of this session", None),
        (("startup",), "model owner has to bring the model", None),
        (("patient", None, None, stage.model()), "model owner has to bring the model", None),
        (
            ("startup", None, None, stage.from_onnx(stage.onnx_bytes(wide=2))),
            "not the one the session was",
            "startup",
        ),
        (("startup", None, None, other_ranges()), "not the one the session was", "startup"),
        (("patient", stage.manifest(backend="plain")), "'plain' cannot run between parties", None),
    ],
)
def test_join_refuses(arguments, message, culprit):
    arguments = list(arguments)
    if len(arguments) > 2 and arguments[2] is None:
        arguments[2] = stage.identity(arguments[0])
    if arguments[0] == "nobody":
        arguments += [None, stage.identity("helper")]
    with pytest.raises(ConfigError) as caught:
        join(*arguments)
    assert type(caught.value) is ConfigError
    assert message in caught.value.message
    assert caught.value.culprit == culprit


def test_another_models_weights_under_the_same_architecture_are_the_owners_affair():
    """Weights are private to their owner: nobody can tell, and the session file does not say."""
    outcomes = stage.Play(models={"startup": stage.model(7)}).run()
    if stage.model(7).architecture.digest() == stage.model().architecture.digest():
        assert not [o.error for o in outcomes.values() if o.error]
    else:
        assert all(o.error.culprit == "startup" for o in outcomes.values())


def test_unknown_backend_at_run_local():
    with pytest.raises(ConfigError, match="there is no backend 'paper'"):
        privinfer.run_local(stage.model(), stage.rows(), backend="paper")


def test_session_that_names_other_inputs_than_the_model():
    base = stage.manifest(inputs={"xray": "hospital", "dna": "dna_company", "urine": "laboratory"})
    outcomes = stage.Play(base=base).run()
    for outcome in outcomes.values():
        assert type(outcome.error) is ConfigError
        assert "urine" in outcome.error.message


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: bytes(len(b))]
)
def test_architecture_bytes(spoil):
    data = spoil(stage.model().architecture.to_bytes())
    with pytest.raises(ConfigError):
        ir.Architecture.from_bytes(data)

    def hook(source, destination, frame):
        return stage.changed(frame, payload=data) if frame.kind is Kind.HELLO and frame.step == 2 else frame

    outcomes = stage.Play(hook=hook).run()
    for name in set(stage.NAMES) - {"startup"}:
        assert type(outcomes[name].error) is ConfigError
        assert outcomes[name].error.culprit == "startup"
        assert "architecture" in outcomes[name].error.message


def test_expired_certificate():
    end = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    old = Identity._generate("patient", end - dt.timedelta(days=1), end)
    parties = list(stage.manifest().parties)
    parties[4] = Entry("patient", "127.0.0.1", 5, old.certificate_pem)
    with pytest.raises(ConfigError, match=r"parties\[4\].certificate has expired") as caught:
        stage.manifest(parties=tuple(parties))
    assert caught.value.culprit == "patient"


def test_two_parties_with_one_name():
    parties = list(stage.manifest().parties)
    parties[4] = Entry("helper", "127.0.0.1", 99, Identity.generate("helper").certificate_pem)
    with pytest.raises(ConfigError, match="name is also that of parties") as caught:
        stage.manifest(parties=tuple(parties))
    assert caught.value.culprit == "helper"


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        parties = list(stage.manifest().parties)
        parties[0] = Entry("hospital", *taken.getsockname(), stage.identity("hospital").certificate_pem)
        with pytest.raises(ConfigError, match="address already in use") as caught:
            join("hospital", stage.manifest(parties=tuple(parties)))
        assert str(taken.getsockname()[1]) in caught.value.message


def listeners(names):
    found = {}
    for name in names:
        found[name] = socket.socket()
        found[name].bind(("127.0.0.1", 0))
        found[name].listen(16)
    return found


def test_two_processes_with_one_identity():
    """The second one of a party that does not listen is turned away; the session goes on."""
    socks = listeners(stage.NAMES)
    parties = tuple(Entry(n, *socks[n].getsockname(), stage.identity(n).certificate_pem) for n in stage.NAMES)
    base = stage.manifest(10.0, parties=parties, connect_timeout=3.0)
    ended, joined = {}, threading.Barrier(6)

    def play(name):
        own = stage.model() if name == "startup" else None
        try:
            session = privinfer.Session(base)
            with session.join(name, stage.identity(name), model=own, listener=socks[name]) as party:
                joined.wait(10)
                if name == "helper":
                    try:
                        join("helper", base)
                    except privinfer.PrivinferError as error:
                        ended["second"] = error
                ended[name] = party.run(stage.rows().get(name, {}))
        except BaseException as error:
            ended[name] = error

    threads = [threading.Thread(target=play, args=(n,)) for n in stage.NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert type(ended["second"]) is TransportError
    assert ended["patient"].outputs["risk"].shape == (1, 2)
    assert not [n for n in stage.NAMES if isinstance(ended[n], BaseException)]


# -- files -----------------------------------------------------------------------------------------


def test_truncated_session_file(tmp_path):
    raw = stage.manifest().raw
    for size in range(0, len(raw) - 1, 50):
        path = tmp_path / "session.toml"
        path.write_bytes(raw[:size])
        with pytest.raises(ConfigError) as caught:
            privinfer.Session.load(path)
        assert type(caught.value) is ConfigError
        assert len(caught.value.message) < 200


def test_truncated_key_file(tmp_path):
    whole = stage.identity("patient").private_pem()
    path = tmp_path / "patient.key"
    for size in range(0, len(whole) - 1, 50):
        path.write_bytes(whole[:size])
        path.chmod(0o600)
        with pytest.raises(ConfigError) as caught:
            Identity.load(path)
        assert caught.value.__cause__ is None or "PRIVATE" not in str(caught.value.__cause__)
        assert "BEGIN" not in caught.value.message


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_readable_key(tmp_path, mode):
    path = tmp_path / "patient.key"
    stage.identity("patient").save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        Identity.load(path)
    assert caught.value.hint == f"chmod 600 {path}"


# -- typed -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage.manifest().save("session.toml")
    for name in stage.NAMES:
        stage.identity(name).save(f"{name}.key")
    (tmp_path / "model.onnx").write_bytes(stage.onnx_bytes())
    (tmp_path / "wide.onnx").write_bytes(stage.onnx_bytes(wide=2))
    np.save("blood.npy", GOOD)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "blood.npy").read_bytes()[:-5])
    np.save("pickled.npy", GOOD.astype(object), allow_pickle=True)
    (tmp_path / "words.csv").write_text("a,b,c\n1,2,3\n")
    (tmp_path / "blood.xls").write_text("1 2 3\n")
    (tmp_path / "cut.toml").write_bytes(stage.manifest().raw[:700])
    (tmp_path / "other.toml").write_bytes(stage.manifest(backend="plain").raw)
    (tmp_path / "half.key").write_bytes(stage.identity("laboratory").private_pem()[:100])
    (tmp_path / "half.key").chmod(0o600)
    (tmp_path / "open.key").write_bytes(stage.identity("laboratory").private_pem())
    (tmp_path / "open.key").chmod(0o644)
    (tmp_path / "cut.onnx").write_bytes(stage.onnx_bytes()[:-40])
    return tmp_path


BLOOD = ("--input", "blood=blood.npy")
RANGES = tuple(f"--range={n}=-4:4" for n in stage.SHAPES)
TYPED = [
    (("laboratory",), 13, "laboratory has to bring blood, not none"),
    (("laboratory", "--input", "blod=blood.npy"), 13, "has to bring blood, not blod"),
    (("laboratory", *BLOOD, *BLOOD), 13, "--input names blood twice"),
    (("laboratory", "--input", "blood"), 13, "--input blood is not NAME="),
    (("laboratory", "--input", "blood=gone.npy"), 13, "there is no file gone.npy"),
    (("laboratory", "--input", "blood=cut.npy"), 13, "cut.npy is truncated or holds no array"),
    (("laboratory", "--input", "blood=pickled.npy"), 13, "pickled.npy is truncated or holds no array"),
    (("laboratory", "--input", "blood=words.csv"), 13, "words.csv is truncated or holds no array"),
    (("laboratory", "--input", "blood=blood.xls"), 13, "unknown kind of file"),
    (("patient", *BLOOD), 13, "patient has to bring no input, not blood"),
    (("nobody",), 11, "nobody is not a party"),
    (
        ("laboratory", *BLOOD, "--identity", "patient.key"),
        11,
        "not the one the session file has for laboratory",
    ),
    (("laboratory", *BLOOD, "--identity", "gone.key"), 11, "cannot read identity gone.key"),
    (("laboratory", *BLOOD, "--identity", "half.key"), 11, "identity half.key must hold one"),
    (("laboratory", *BLOOD, "--identity", "open.key"), 11, "can be read by others"),
    (("laboratory", *BLOOD, "--session", "cut.toml"), 11, ""),
    (("laboratory", *BLOOD, "--session", "gone.toml"), 11, "cannot read session file gone.toml"),
    (("laboratory", *BLOOD, "--session", "other.toml"), 11, "backend 'plain' cannot run"),
    (("startup",), 11, "model owner has to bring the model"),
    (("laboratory", *BLOOD, "--model", "model.onnx", *RANGES), 11, "model owner has to bring the model"),
    (("startup", "--model", "wide.onnx", *RANGES), 11, "not the one the session was sealed for"),
    (("startup", "--model", "model.onnx"), 11, "not the one the session was sealed for"),
    (("startup", "--model", "cut.onnx", *RANGES), 11, ""),
    (("startup", "--model", "gone.onnx", *RANGES), 11, "gone.onnx"),
    (("startup", "--model", "model.onnx", "--range", "xray=1"), 11, "--range xray=1 is not"),
    (
        ("startup", "--model", "model.onnx", "--range", "x=0:1"),
        11,
        "a range is given for 'x', which is no input",
    ),
    ((), 2, "missing argument"),
    (("laboratory", "--bogus"), 2, "no such option"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), TYPED)
def test_typed(folder, capsys, monkeypatch, arguments, code, message):
    monkeypatch.setattr(sys, "argv", ["privinfer", "party", *arguments])
    with pytest.raises(SystemExit) as ended:
        command()
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    lines = [line for line in err.splitlines() if ": waiting for " not in line]
    assert lines[0].startswith("privinfer: error: "), err
    assert message in lines[0], err
    assert len(lines) <= 2
    assert all(line.startswith("privinfer: hint: ") for line in lines[1:])
    assert not out
    assert "Traceback" not in err


def test_typed_out_of_range(tmp_path):
    """Known only once the model owner has said what the ranges are: all six take part."""
    from tests.multiparty.troupe import CLI, Troupe

    troupe = Troupe(tmp_path, deadline=5.0)
    np.save(tmp_path / "blood.npy", np.full((1, 3), 4.5))
    with contextlib.ExitStack() as stack:
        for name in stage.NAMES:
            if name != "laboratory":
                troupe.start(name, [stage.rows()])
        stack.callback(troupe.end)
        done = subprocess.run(
            [*CLI, "party", "laboratory", "--input", "blood=blood.npy"],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=40,
        )
        ended = {n: troupe._parse(p, *p.communicate(timeout=20)) for n, p in troupe.running.items()}
    assert done.returncode == 13
    errors = [line for line in done.stderr.splitlines() if line.startswith("privinfer: ")]
    assert errors[0].startswith("privinfer: error: input 'blood': 3 of 3 values lie outside")
    assert "Traceback" not in done.stderr
    for name, one in ended.items():
        assert one["error"] == [
            "InputError",
            "laboratory",
            "refused its own input before anything was sent",
        ], name
        assert one["code"] == 13
        assert one["stderr"] == ""


test_typed_out_of_range = pytest.mark.slow(test_typed_out_of_range)


def test_manifests_of_the_tests_are_what_a_file_gives(tmp_path):
    path = tmp_path / "s.toml"
    stage.manifest().save(path)
    assert Manifest.load(path).digest() == stage.manifest().digest()
    assert os.stat(path).st_size > 1000
