"""The command line: every mistake gets one line of error, at most one of hint, a numbered exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from privinfer import __version__, from_onnx
from privinfer.session import Identity, Manifest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "cohort" / "risk.onnx"
DRAFT = ROOT / "examples" / "six_terminals" / "session.draft.toml"
NAMES = ("hospital", "dna_company", "laboratory", "startup", "helper", "patient")
RANGES = ("--range", "xray=0:1", "--range", "dna=0:2", "--range", "blood=-4:4")
COMMANDS = ("new", "doctor", "estimate", "run", "page", "keygen", "seal", "party", "deal", "demo")
USAGE, CONFIG, INPUT, TRANSPORT, STOPPED = 2, 11, 13, 21, 130  # exit codes


@pytest.fixture
def refused(privinfer):
    """Run a mistake; checks the house form and the code, returns error and hint."""

    def run(code, *arguments):
        found, out, err = privinfer(*arguments)
        assert found == code, err
        assert out == ""
        return form(err)

    return run


def form(err):
    """(error, hint) of what a mistake printed, which is these two lines and nothing else."""
    assert "Traceback" not in err
    said = re.fullmatch(r"privinfer: error: (\S[^\n]*[^\n.])\n(?:privinfer: hint: (\S[^\n]*[^\n.])\n)?", err)
    assert said is not None, err
    assert not re.match(r"[A-Z][a-z]", said[1])
    return said[1], said[2]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Keys of all parties, a draft, and the session sealed from it."""
    folder = tmp_path_factory.mktemp("made")
    for name in (*NAMES, "stranger"):
        identity = Identity.generate(name, days=2)
        identity.save(folder / f"{name}.key")
        (folder / f"{name}.crt").write_text(identity.certificate_pem)
    shutil.copy(DRAFT, folder)
    ranges = {"xray": (0, 1), "dna": (0, 2), "blood": (-4, 4)}
    digest = from_onnx(MODEL, ranges).architecture.digest()
    Manifest.seal(folder / DRAFT.name, digest).save(folder / "session.toml")
    np.save(folder / "xray.npy", np.zeros((1, 28, 28)))
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of `made` to spoil, and the working directory."""
    for file in made.iterdir():
        shutil.copy2(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the command itself ----------------------------------------------------------------------------


def test_version(privinfer):
    assert privinfer("--version") == (0, f"privinfer {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(privinfer, command):
    code, out, err = privinfer(command, "--help")
    assert (code, err) == (0, "")
    assert f"privinfer {command}" in out


def test_help_lists_the_commands(privinfer):
    code, out, err = privinfer("--help")
    assert (code, err) == (0, "")
    assert re.findall(r"^│ (\w+) {2,}\S", out, re.MULTILINE) == [
        *("new", "doctor", "estimate", "run", "page", "serve", "ask"),
        *("keygen", "seal", "commit", "party", "deal", "verify", "demo", "fragment", "consent", "door"),
    ]


def test_nothing_typed_gives_the_help(privinfer):
    code, out, err = privinfer()
    assert code == USAGE
    assert "keygen" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["frob"], "no such command 'frob'"),
        (["--frob"], "no such option: --frob"),
        (["keygen", "a", "--frob"], "no such option: --frob"),
        (["keygen"], "missing argument 'name'"),
        (["keygen", "a", "b"], "got unexpected extra argument(s) (b)"),
        (["keygen", "a", "--days", "0"], "invalid value for '--days'"),
        (["keygen", "a", "--days", "3651"], "invalid value for '--days'"),
        (["keygen", "a", "--days", "soon"], "invalid value for '--days'"),
        (["seal"], "missing argument 'draft'"),
        (["seal", "draft.toml"], "missing option '--model'"),
        (["seal", "draft.toml", "--model"], "option '--model' requires an argument"),
        (["party"], "missing argument 'name'"),
        (["party", "hospital", "--comparison-bits", "many"], "invalid value for '--comparison-bits'"),
        (["demo", "--patient", "-1"], "invalid value for '--patient'"),
        (["demo", "--patient", "first"], "invalid value for '--patient'"),
        (["demo", "--batch", "0"], "invalid value for '--batch'"),
        (["demo", "--report"], "option '--report' requires an argument"),
        (["demo", "now"], "got unexpected extra argument(s) (now)"),
    ],
)
def test_mistyped_command(refused, empty, arguments, error):
    said, hint = refused(USAGE, *arguments)
    assert said.startswith(error)
    assert hint == "see --help"
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["frob"], USAGE, "no such command 'frob'"),
        (["keygen", "Not A Name"], CONFIG, "name is not a party name"),
        (
            ["seal", "none.toml", "--model", "none.onnx"],
            CONFIG,
            "the ONNX file 'none.onnx' cannot be read: no such file or directory",
        ),
        (["demo", "--patient", "200"], CONFIG, "patients 200 to 200 are not all in the test cohort"),
    ],
)
def test_installed_command(empty, arguments, code, error):
    command = Path(sys.executable).with_name("privinfer")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert form(done.stderr)[0] == error


# -- keygen ----------------------------------------------------------------------------------------


def test_keygen(privinfer, empty):
    mask = os.umask(0)  # the key is private whatever the mask
    try:
        code, out, err = privinfer("keygen", "hospital", "--days", "7")
    finally:
        os.umask(mask)
    assert (code, err) == (0, "")
    assert {p.name for p in empty.iterdir()} == {"hospital.key", "hospital.crt"}
    assert (empty / "hospital.key").stat().st_mode & 0o777 == 0o600
    identity = Identity.load(empty / "hospital.key")
    assert (empty / "hospital.crt").read_text() == identity.certificate_pem
    assert (identity.public.not_after - identity.public.not_before).days == 7
    assert f"sha256 {identity.fingerprint}\n" in out
    assert "hospital.key  secret" in out
    secret = (empty / "hospital.key").read_text().split("-----")[2].strip()
    assert secret not in out


def test_keygen_in_another_folder(privinfer, empty):
    (empty / "keys").mkdir()
    assert privinfer("keygen", "lab-2", "--out", "keys")[0] == 0
    assert {p.name for p in (empty / "keys").iterdir()} == {"lab-2.key", "lab-2.crt"}


@pytest.mark.parametrize("left", [("hospital.key",), ("hospital.crt",), ("hospital.key", "hospital.crt")])
def test_keygen_never_overwrites(refused, empty, left):
    for name in left:
        (empty / name).write_text("precious")
    error, hint = refused(CONFIG, "keygen", "hospital")
    assert error.endswith(" exists already")
    assert hint
    assert {p.name: p.read_text() for p in empty.iterdir()} == dict.fromkeys(left, "precious")


@pytest.mark.parametrize("name", ["Hospital", "1st", "", "a b", "../up", "a/b", "a" * 33, "-a", "é"])
def test_keygen_name(refused, empty, name):
    error, hint = refused(CONFIG, "keygen", "--", name)
    assert "not a party name" in error
    assert "lower-case letter" in hint
    assert list(empty.iterdir()) == []


def test_keygen_without_the_folder(refused, empty):
    error, _ = refused(CONFIG, "keygen", "a", "--out", "missing")
    assert error == "cannot write identity missing/a.key: no such file or directory"


# -- seal ------------------------------------------------------------------------------------------


def seal(*more):
    return "seal", "draft.toml", "--model", MODEL, *RANGES, "--out", "out.toml", *more


def spoil(folder, old, new):
    text = DRAFT.read_text()
    assert old in text
    (folder / "draft.toml").write_text(text.replace(old, new))


def test_seal(privinfer, folder):
    spoil(folder, "7101", "7201")
    code, out, err = privinfer(*seal())
    assert (code, err) == (0, "")
    sealed = Manifest.load(folder / "out.toml")
    assert out == f"out.toml  sha256 {sealed.digest().hex()}\n"
    assert sealed.names == NAMES
    assert sealed.party("hospital").port == 7201
    assert sealed.inputs == {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}
    assert sealed.model == Manifest.load(folder / "session.toml").model
    assert sealed.session != Manifest.load(folder / "session.toml").session


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("version = 1", "version = 2", "version is not 1"),
        ("version = 1", "", "version is missing"),
        ('"mpc"', '"magic"', "backend is none of plain, mpc, ckks, crypten"),
        ("deadline = 30.0", "deadline = -1", "deadline must lie above 0 and not above 86400 seconds"),
        ("deadline =", "dead_line =", "dead_line is not a known key"),
        ("[roles]", "[rolls]", "roles is missing"),
        ("[inputs]", "[inputs", "session file is not TOML (line 13)"),
        ('helper = "helper"', "", "roles.helper is missing, and mpc needs one"),
        ('helper = "helper"', 'helper = "nobody"', "roles.helper names a party that is not listed"),
        ('helper = "helper"', 'helper = "startup"', "roles.helper is an evaluator too (culprit: startup)"),
        ('["startup", "hospital"]', '["startup"]', "roles.evaluators must be two for mpc"),
        ('["startup", "hospital"]', '["startup", "startup"]', "roles.evaluators names a party twice"),
        ('blood = "laboratory"', "", "party has no role (culprit: laboratory)"),
        ('risk = "patient"', 'risk = "nobody"', "receivers.risk names a party that is not listed"),
        (
            'name = "patient"',
            'name = "helper"',
            "parties[5].name is also that of parties[4] (culprit: helper)",
        ),
        ('name = "patient"', 'name = "Sarah"', "parties[5].name is not a party name"),
        ("7102", "7101", "parties[1].address is also that of parties[0] (culprit: dna_company)"),
        ("127.0.0.1:7102", "127.0.0.1", "parties[1].address is not host:port (culprit: dna_company)"),
        (
            "dna_company.crt",
            "gone.crt",
            "parties[1].certificate_file: cannot read certificate gone.crt: no such file or directory "
            "(culprit: dna_company)",
        ),
        (
            "dna_company.crt",
            "dna_company.key",
            "parties[1].certificate: certificate text holds a private key (culprit: dna_company)",
        ),
        (
            "dna_company.crt",
            "stranger.crt",
            "parties[1].certificate bears the name stranger (culprit: dna_company)",
        ),
    ],
)
def test_draft_error(refused, folder, old, new, error):
    spoil(folder, old, new)
    assert refused(CONFIG, *seal())[0] == error
    assert not (folder / "out.toml").exists()


@pytest.mark.parametrize(
    ("old", "new", "title"), [("dna = ", "genes = ", "inputs"), ("risk = ", "score = ", "receivers")]
)
def test_draft_names_what_the_model_lacks(refused, folder, old, new, title):
    spoil(folder, f"\n{old}", f"\n{new}")
    error, hint = refused(CONFIG, *seal())
    assert error.startswith(f"the session's {title} are ")
    assert new.split()[0] in error
    assert old.split()[0] in error
    assert f"[{title}]" in hint
    assert not (folder / "out.toml").exists()


@pytest.mark.parametrize("backend", ["plain", "ckks", "crypten"])
def test_seal_refuses_a_backend_that_cannot_run(refused, folder, backend):
    spoil(folder, '"mpc"', f'"{backend}"')
    assert backend in refused(CONFIG, *seal())[0]


def test_seal_without_a_draft(refused, folder):
    error, _ = refused(CONFIG, *seal())
    assert error == "cannot read draft draft.toml: no such file or directory"
    (folder / "draft.toml").mkdir()
    assert refused(CONFIG, *seal())[0] == "cannot read draft draft.toml: is a directory"


def test_seal_never_overwrites(refused, folder):
    spoil(folder, "7101", "7201")
    before = (folder / "session.toml").read_bytes()
    assert refused(CONFIG, *seal(), "--out", "session.toml")[0] == "session.toml exists already"
    assert (folder / "session.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "the ONNX file 'm.onnx' cannot be read: no such file or directory"),
        (b"hello", "the file is not an ONNX model, or it is truncated"),
        (MODEL.read_bytes()[:5000], "the file is not an ONNX model, or it is truncated"),
    ],
)
def test_seal_with_a_bad_model(refused, folder, content, error):
    shutil.copy(DRAFT, "draft.toml")
    if content is not None:
        Path("m.onnx").write_bytes(content)
    assert refused(CONFIG, "seal", "draft.toml", "--model", "m.onnx", "--out", "out.toml")[0] == error
    assert not (folder / "out.toml").exists()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("xray", "--range xray is not "),
        ("=0:1", "--range =0:1 is not "),
        ("xray=", "--range xray= is not "),
        ("xray=0", "--range xray=0 is not NAME=LOW:HIGH"),
        ("xray=0:", "--range xray=0: is not NAME=LOW:HIGH"),
        ("xray=0:1:2", "--range xray=0:1:2 is not NAME=LOW:HIGH"),
        ("xray=low:high", "--range xray=low:high is not NAME=LOW:HIGH"),
        ("xray=1:0", "the range of input 'xray' is not a finite interval (low, high)"),
        ("xray=nan:1", "the range of input 'xray' is not a finite interval (low, high)"),
        ("xray=0:inf", "the range of input 'xray' is not a finite interval (low, high)"),
        ("mri=0:1", "a range is given for 'mri', which is no input"),
    ],
)
def test_bad_range(refused, folder, given, error):
    shutil.copy(DRAFT, "draft.toml")
    arguments = ("--model", MODEL, "--out", "out.toml", "--range", given)
    assert refused(CONFIG, "seal", "draft.toml", *arguments)[0].startswith(error)
    assert not (folder / "out.toml").exists()


def test_range_given_twice(refused, folder):
    shutil.copy(DRAFT, "draft.toml")
    assert refused(CONFIG, *seal("--range", "dna=0:2"))[0] == "--range names dna twice"


@pytest.mark.parametrize("bits", [-1, 0, 19, 49])
def test_comparison_bits_out_of_bounds(refused, folder, bits):
    shutil.copy(DRAFT, "draft.toml")
    error, hint = refused(CONFIG, *seal(f"--comparison-bits={bits}"))
    assert f"{bits}-bit" in error
    assert "comparison_bits <= 48" in hint


# -- party -----------------------------------------------------------------------------------------


XRAY = ("--input", "xray=xray.npy")


def mistake(privinfer, code, *arguments):
    """A party's mistake may come after the line that says for whom it waits."""
    found, out, err = privinfer("party", *arguments)
    assert found == code, err
    assert out == ""
    return form(re.sub(r"\A\w+: waiting for [\w, ]+\n", "", err))


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["hospital"], INPUT, "hospital has to bring xray, not none"),
        (["patient", *XRAY], INPUT, "patient has to bring no input, not xray"),
        (["hospital", "--input", "dna=xray.npy"], INPUT, "hospital has to bring xray, not dna"),
        (["hospital", *XRAY, *XRAY], INPUT, "--input names xray twice"),
        (["hospital", "--input", "xray"], INPUT, "--input xray is not "),
        (["hospital", "--input", "=xray.npy"], INPUT, "--input =xray.npy is not "),
        (["hospital", "--input", "xray=gone.npy"], INPUT, "there is no file gone.npy"),
        (["hospital", "--input", "xray=session.toml"], INPUT, "session.toml: unknown kind of file"),
        (["nobody"], CONFIG, ""),
        (["hospital", *XRAY, "--session", "gone.toml"], CONFIG, "cannot read session file gone.toml: "),
        (["hospital", *XRAY, "--session", DRAFT.name], CONFIG, "session is missing"),
        (["hospital", *XRAY, "--identity", "gone.key"], CONFIG, "cannot read identity gone.key: "),
        (
            ["hospital", *XRAY, "--identity", "patient.key"],
            CONFIG,
            "this key is not the one the session file has for hospital (culprit: hospital)",
        ),
        (
            ["hospital", *XRAY, "--identity", "xray.npy"],
            CONFIG,
            "identity xray.npy ",
        ),
        (["hospital", *XRAY, "--model", MODEL, *RANGES], CONFIG, "the model owner has to bring the model"),
        (["startup"], CONFIG, "the model owner has to bring the model"),
        (["startup", "--model", "xray.npy"], CONFIG, "the file is not an ONNX model"),
        (
            ["startup", "--model", MODEL, "--range", "dna=0:1"],  # what is typed wins over what the file says
            CONFIG,
            "this model is not the one the session was sealed for (culprit: startup)",
        ),
        (["startup", "--model", MODEL, *RANGES, "--comparison-bits", "40"], CONFIG, "this model is not the"),
    ],
)
def test_party_mistake(privinfer, folder, arguments, code, error):
    before = {p.name for p in folder.iterdir()}
    assert mistake(privinfer, code, *arguments)[0].startswith(error)
    assert {p.name for p in folder.iterdir()} == before


def test_who_counts_answers_says_where(privinfer, folder):
    spoil(
        folder,
        '[[parties]]\nname = "hospital"',
        '[terms.release]\nanswers = 3\n\n[[parties]]\nname = "hospital"',
    )
    assert privinfer(*seal())[0] == 0
    for command in (("party", "hospital", *XRAY), ("deal", "hospital", "--count", "3", "--store", "store")):
        code, _, err = privinfer(*command, "--session", "out.toml")
        assert code == CONFIG
        assert "hospital counts this session's answers and has no ledger" in err
        assert "--ledger DIR" in err


def test_seal_refuses_limits_that_its_backend_cannot_keep(refused, folder):
    text = (
        DRAFT.read_text()
        .replace('"mpc"', '"crypten"')
        .replace("version = 1", 'version = 1\ninsecure = ["crypten"]')
    )
    text = text.replace('evaluators = ["startup", "hospital"]', "").replace('helper = "helper"', "")
    text = re.sub(r'\[\[parties\]\]\nname = "helper"\n.*\n.*\n', "", text)
    (folder / "draft.toml").write_text(f"{text}\n[terms.release]\ndecimals = 2\n")
    assert "cannot round results" in refused(CONFIG, *seal())[0]


@pytest.mark.parametrize("more", [(), XRAY])
def test_party_that_is_none(privinfer, folder, more):
    error, hint = mistake(privinfer, CONFIG, "nobody", *more)
    assert error == "nobody is not a party of this session"
    assert "hospital" in hint


def test_party_with_a_key_that_others_can_read(privinfer, folder):
    (folder / "helper.key").chmod(0o644)
    error, hint = mistake(privinfer, CONFIG, "helper")
    assert error == "identity helper.key can be read by others"
    assert hint == "chmod 600 helper.key"


@pytest.mark.parametrize("kind", ["pickle", "truncated", "two", "text"])
def test_party_with_a_bad_file(privinfer, folder, kind):
    file = folder / {"two": "bad.npz", "text": "bad.csv"}.get(kind, "bad.npy")
    if kind == "pickle":
        np.save(file, np.array([{"a": 1}], dtype=object))
    elif kind == "truncated":
        file.write_bytes((folder / "xray.npy").read_bytes()[:200])
    elif kind == "two":
        np.savez(file, a=np.zeros(1), b=np.zeros(1))
    else:
        file.write_text("one,two\n")
    error, _ = mistake(privinfer, INPUT, "hospital", "--input", f"xray={file.name}")
    assert error.startswith(file.name)


@pytest.mark.parametrize("option", ["--report", "--output"])
def test_party_that_could_not_write_its_answer(privinfer, folder, option):
    (folder / "file").write_text("no folder")
    shorten(folder)
    code, _, err = privinfer("party", "patient", option, "file/x.json", "--session", "short.toml")
    assert code == CONFIG, err
    assert "file" in form(err)[0]


def shorten(folder):
    """A session in which the others are not waited for long."""
    ports = iter(free_ports(len(NAMES)))
    text = (folder / "session.toml").read_text().replace("connect_timeout = 300.0", "connect_timeout = 0.5")
    text = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{next(ports)}", text)
    assert tomllib.loads(text)["connect_timeout"] == 0.5
    (folder / "short.toml").write_text(text)


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


@pytest.mark.parametrize("more", [("--range", "xray=0:1"), ("--comparison-bits", "40")])
def test_party_with_options_of_a_model_it_does_not_bring(privinfer, folder, more):
    shorten(folder)
    error, _ = mistake(privinfer, CONFIG, "helper", "--session", "short.toml", *more)
    assert more[0] in error


def test_party_alone(privinfer, folder):
    shorten(folder)
    error, hint = mistake(privinfer, TRANSPORT, "helper", "--session", "short.toml")
    for name in set(NAMES) - {"helper"}:
        assert name in error
    assert "same session file" in hint


def test_party_is_stopped_while_it_waits(folder):
    shorten(folder)
    text = (folder / "short.toml").read_text().replace("connect_timeout = 0.5", "connect_timeout = 30.0")
    (folder / "short.toml").write_text(text)
    command = [sys.executable, "-m", "privinfer.cli.main", "party", "helper", "--session", "short.toml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("helper: waiting for hospital, ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (STOPPED, "")
    assert form(err) == ("stopped", None)


# -- demo ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--patient", "200"], "patients 200 to 200 are not all in the test cohort"),
        (["--patient", "199", "--batch", "2"], "patients 199 to 200 are not all in the test cohort"),
        (["--batch", "201"], "patients 0 to 200 are not all in the test cohort"),
        (["--examples", "nowhere"], "the demonstration's data are not in nowhere"),
    ],
)
def test_demo_mistake(refused, empty, arguments, error):
    said, hint = refused(CONFIG, "demo", *arguments)
    assert said == error
    assert hint


def test_demo_that_could_not_write_its_report(refused, empty):
    assert "missing" in refused(CONFIG, "demo", "--report", "missing/out.json")[0]


def test_demo_with_other_code_in_the_folder(refused, empty):
    shutil.copy(MODEL, empty)
    (empty / "cohort.py").write_text("import a_module_that_nobody_has\n")
    assert "cohort.py" in refused(CONFIG, "demo", "--examples", ".")[0]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mpc", "exact"])
def test_demo_report(privinfer, empty, backend):
    code, out, err = privinfer(
        "demo", "--patient", "3", "--batch", "2", "--report", "out.json", "--backend", backend
    )
    assert (code, err) == (0, "")
    assert "The patients are synthetic" in out
    report = json.loads((empty / "out.json").read_text())
    assert report["schema"] == "privinfer.report/1"
    assert report["patients"] == [3, 4]
    assert report["same_decision_as_oracle"] == [2, 2]
    assert report["largest_absolute_error"] <= report["precision"]["declared_error_bound"] < 5e-3
    assert set(report["parties"]) == set(NAMES)
    assert report["backend"] == ("mpc" if backend == "mpc" else "ckks")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["hospital"], USAGE, "missing option '--count'"),
        (["hospital", "--count", "0", "--store", "s"], USAGE, "invalid value for '--count'"),
        (["hospital", "--count", "2"], CONFIG, "hospital keeps part of what is dealt"),
        (["nobody", "--count", "2"], CONFIG, "nobody is not a party of this session"),
        (
            ["hospital", "--count", "2", "--store", "s", "--budget", "much"],
            CONFIG,
            "--budget much is not a size",
        ),
        (
            ["hospital", "--count", "2", "--store", "session.toml"],
            CONFIG,
            "store session.toml cannot be used",
        ),
        (["startup", "--count", "2", "--store", "s"], CONFIG, "the model owner has to bring the model"),
    ],
)
def test_deal_mistake(privinfer, folder, arguments, code, error):
    exit_code, _, err = privinfer("deal", *arguments)
    said = form(re.sub(r"\A\w+: waiting for [\w, ]+\n", "", err))
    assert exit_code == code
    assert said[0].startswith(error)
