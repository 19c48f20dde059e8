"""Session files: round trips, digests, and every refusal with its type and culprit."""

import dataclasses
import datetime as dt
import hashlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError
from privinfer.session import Identity, Manifest, Party

MODEL = hashlib.sha256(b"model").hexdigest()
NAMES = ("startup", "hospital", "helper", "dna_company", "patient")
IDENTITIES = {name: Identity.generate(name) for name in NAMES}


def parties():
    return tuple(
        Party(name, "127.0.0.1", 7001 + i, IDENTITIES[name].certificate_pem) for i, name in enumerate(NAMES)
    )


def manifest(**changes):
    fields = {
        "session": "0123456789abcdef" * 2,
        "backend": "mpc",
        "model": MODEL,
        "parties": parties(),
        "model_owner": "startup",
        "evaluators": ("startup", "hospital"),
        "helper": "helper",
        "inputs": {"xray": "hospital", "dna": "dna_company"},
        "receivers": {"risk": "patient"},
        "deadline": 30.0,
        "connect_timeout": 60.0,
        "insecure": (),
    }
    return Manifest(**(fields | changes))


RAW = manifest().dumps().encode()


def replaced(old, new, count=1):
    text = RAW.decode()
    assert old in text
    return text.replace(old, new, count).encode()


# -- round trips -----------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    made = manifest()
    made.save(tmp_path / "session.toml")
    loaded = Manifest.load(tmp_path / "session.toml")
    assert loaded == made
    assert loaded.digest() == made.digest() == hashlib.sha256(RAW).digest()
    with pytest.raises(ConfigError, match="exists already"):
        made.save(tmp_path / "session.toml")


def test_digest_covers_the_file_as_it_is():
    loaded = Manifest.loads(RAW + b"# a comment\n")
    assert loaded == manifest()
    assert loaded.digest() != manifest().digest()
    assert dataclasses.replace(loaded, deadline=5.0).digest() == manifest(deadline=5.0).digest()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
def test_any_changed_byte_changes_the_digest_or_is_refused(at, flip):
    raw = bytearray(RAW)
    raw[at] ^= flip
    try:
        changed = Manifest.loads(bytes(raw))
    except ConfigError:
        return
    assert changed.digest() != manifest().digest()


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(names, st.sampled_from(NAMES), min_size=1, max_size=6),
    st.floats(1e-3, 86400),
    st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), unique=True, max_size=3),
)
def test_whatever_is_made_can_be_read(inputs, seconds, insecure):
    made = manifest(
        inputs=inputs | {"dna": "dna_company"}, deadline=seconds, insecure=tuple(insecure), connect_timeout=7
    )
    loaded = Manifest.loads(made.raw)
    assert loaded == made
    assert loaded.raw == made.raw


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("[2001:db8::7]:7001", "2001:db8::7", 7001),
        ("[2001:DB8:0::7]:1", "2001:db8::7", 1),
        ("Hospital.example:65535", "hospital.example", 65535),
        ("dna_company:80", "dna_company", 80),
        ("192.0.2.1:7001", "192.0.2.1", 7001),
    ],
)
def test_addresses(address, host, port):
    loaded = Manifest.loads(replaced("127.0.0.1:7001", address))
    assert (loaded.parties[0].host, loaded.parties[0].port) == (host, port)
    assert Manifest.loads(loaded.dumps().encode()) == loaded


def test_roles():
    made = manifest()
    assert made.roles_of("startup") == ["model_owner", "evaluator"]
    assert made.roles_of("hospital") == ["owner", "evaluator"]
    assert made.roles_of("helper") == ["helper"]
    assert made.roles_of("dna_company") == ["owner"]
    assert made.roles_of("patient") == ["receiver"]
    assert made.party("patient").port == 7005
    with pytest.raises(ConfigError, match="nobody"):
        made.roles_of("nobody")


# -- drafts ----------------------------------------------------------------------------------------

DRAFT = """
version = 1
backend = "mpc"
[roles]
model_owner = "startup"
evaluators = ["startup", "hospital"]
helper = "helper"
[inputs]
xray = "hospital"
dna = "dna_company"
[receivers]
risk = "patient"
"""


@pytest.fixture
def draft(tmp_path):
    text = DRAFT
    for i, name in enumerate(NAMES):
        (tmp_path / f"{name}.crt").write_text(IDENTITIES[name].certificate_pem)
        text += (
            f'[[parties]]\nname = "{name}"\naddress = "127.0.0.1:{7001 + i}"\n'
            f'certificate_file = "{name}.crt"\n'
        )
    path = tmp_path / "draft.toml"
    path.write_text(text)
    return path


def test_seal(draft, tmp_path):
    sealed = Manifest.seal(draft, MODEL)
    assert dataclasses.replace(sealed, session=manifest().session) == manifest()
    assert Manifest.seal(draft, MODEL).session != sealed.session
    sealed.save(tmp_path / "session.toml")
    loaded = Manifest.load(tmp_path / "session.toml")
    assert (loaded, loaded.digest()) == (sealed, sealed.digest())
    # sealing again draws another identifier, and holds the model to what the file says
    assert Manifest.seal(tmp_path / "session.toml", MODEL).session != sealed.session
    with pytest.raises(ConfigError, match="model"):
        Manifest.seal(tmp_path / "session.toml", "0" * 64)


def test_a_draft_is_no_session(draft):
    with pytest.raises(ConfigError, match="session is missing") as caught:
        Manifest.load(draft)
    assert "seal" in caught.value.hint
    with pytest.raises(ConfigError, match=r"parties\[0\].certificate_file cannot stand here") as caught:
        Manifest.loads(f'session = "{"0" * 32}"\nmodel = "{MODEL}"\n'.encode() + draft.read_bytes())
    assert caught.value.culprit == "startup"


def test_draft_files(draft, tmp_path):
    with pytest.raises(ConfigError, match="model"):
        Manifest.seal(draft, "xyz")
    (tmp_path / "hospital.crt").write_bytes(IDENTITIES["hospital"].private_pem())
    with pytest.raises(ConfigError, match=r"parties\[1\].certificate: .*private key") as caught:
        Manifest.seal(draft, MODEL)
    assert caught.value.culprit == "hospital"
    (tmp_path / "hospital.crt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"parties\[1\].certificate_file"):
        Manifest.seal(draft, MODEL)
    (tmp_path / "hospital.crt").unlink()
    with pytest.raises(ConfigError, match=r"parties\[1\].certificate_file.*no such file") as caught:
        Manifest.seal(draft, MODEL)
    assert caught.value.culprit == "hospital"
    draft.write_text(draft.read_text().replace("hospital.crt", "a\\u0000b"))
    with pytest.raises(ConfigError, match="not a path"):
        Manifest.seal(draft, MODEL)


def test_windows_line_ends_give_the_same_certificate(draft, tmp_path):
    path = tmp_path / "helper.crt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Manifest.seal(draft, MODEL).parties == manifest().parties


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "version is not 1"),
        ("version = 1", 'version = "1"', "version is not an integer"),
        ("version = 1", "version = true", "version is not an integer"),
        ("version = 1\n", "", "version is missing"),
        ("version = 1", "version = 1\nextra = 1", "extra is not a known key"),
        ('"0123', '"O123', "session is not 32"),
        ('session = "', 'session = "00', "session is not 32"),
        ('session = "0123456789abcdef0123456789abcdef"', "session = 7", "session is not a string"),
        (f'"{MODEL}"', '"00"', "model is not 64"),
        (f'"{MODEL}"', f'"{MODEL.upper()}"', "model is not 64"),
        ('"mpc"', '"magic"', "backend is none of"),
        ("deadline = 30.0", "deadline = 0", "deadline must lie"),
        ("deadline = 30.0", "deadline = -1", "deadline must lie"),
        ("deadline = 30.0", "deadline = nan", "deadline must lie"),
        ("deadline = 30.0", "deadline = inf", "deadline must lie"),
        ("deadline = 30.0", "deadline = 86401", "deadline must lie"),
        ("deadline = 30.0", "deadline = true", "deadline is not a number"),
        ("deadline = 30.0", 'deadline = "30"', "deadline is not a number"),
        ("deadline = 30.0\n", "", "deadline is missing"),
        ("connect_timeout = 60.0", "connect_timeout = 0.0", "connect_timeout must lie"),
        ("insecure = []", "insecure = {}", "insecure is not an array"),
        ("insecure = []", "insecure = [1]", r"insecure\[0\] is not a string"),
        ("insecure = []", 'insecure = ["A B"]', r"insecure\[0\] is not the name"),
        ("insecure = []", 'insecure = ["a", "a"]', "insecure names an option twice"),
        ("insecure = []", f"insecure = [{'1,' * 65}]", "insecure has more than 64"),
        ("[roles]", "[rules]", "roles is missing"),
        ("[roles]", "[roles]\nboss = 1", "roles.boss is not a known key"),
        ('model_owner = "startup"', 'model_owner = "nobody"', "roles.model_owner names a party"),
        ('model_owner = "startup"', "model_owner = 3", "roles.model_owner is not a string"),
        ('"startup", "hospital"]', '"startup"]', "roles.evaluators must be two"),
        ('"startup", "hospital"]', '"startup", "hospital", "patient"]', "roles.evaluators must be two"),
        ('"startup", "hospital"]', '"startup", "startup"]', "roles.evaluators names a party twice"),
        ('"startup", "hospital"]', '"startup", "nobody"]', r"roles.evaluators\[1\] names a party"),
        ('helper = "helper"\n', "", "roles.helper is missing"),
        ('helper = "helper"', 'helper = "nobody"', "roles.helper names a party"),
        ('xray = "hospital"', 'xray = "nobody"', "inputs.xray names a party"),
        ('xray = "hospital"', "xray = 1", "inputs.xray is not a string"),
        ('xray = "hospital"', '"" = "hospital"', "inputs has a name"),
        ('xray = "hospital"', '"\\n" = "hospital"', "inputs has a name"),
        ('xray = "hospital"\ndna = "dna_company"', "", "inputs must have 1 to 256"),
        (
            'xray = "hospital"',
            "\n".join(f'i{i} = "hospital"' for i in range(256)),
            "inputs must have 1 to 256",
        ),
        ('risk = "patient"', "", "receivers must have 1 to 256"),
        ('risk = "patient"', 'risk = ["patient"]', "receivers.risk is not a string"),
        ("[receivers]", "[[receivers]]", "receivers is not a table"),
        ('name = "helper"', 'name = "Helper"', r"parties\[2\].name is not a party name"),
        ('name = "helper"', "", r"parties\[2\].name is missing"),
        ('name = "helper"', 'name = "helper"\nip = 1', r"parties\[2\].ip is not a known key"),
        ('"127.0.0.1:7003"', "7003", r"parties\[2\].address is not a string"),
        ('[[parties]]\nname = "startup"', '[[partys]]\nname = "startup"', "partys is not a known key"),
        ("version = 1", "version = ", "session file is not TOML"),
        ("version = 1", "version = 1\nversion = 1", "session file is not TOML"),
        ("version = 1", f"version = 1\nx = {'[' * 4000}", "session file is not TOML"),
        ("version = 1", f"version = 1\nx = {'a' * 5000}", "line of more than"),
        ("version = 1", f"version = {'9' * 4080}", "version is not 1|not TOML"),
    ],
)
def test_refusals(old, new, message):
    with pytest.raises(ConfigError, match=message):
        Manifest.loads(replaced(old, new))


@pytest.mark.parametrize(
    "address",
    [
        "", "host", "host:", ":7", "h:0", "h:65536", "h:-1", "h:07", "h:7x", "h: 7", "h h:7", "-h:7", "h-:7",
        "a..b:7", "1.2.3:7", "1.2.3.4.5:7", "256.1.1.1:7", "0.0.0.0:7", "224.0.0.1:7", "[::]:7", "[::1:7",
        "::1:7", "[fe80::1%eth0]:7", "[h]:7", "h:٣", "a" * 64 + ":7", "a." * 140 + "a:7",
    ],
)  # fmt: skip
def test_bad_addresses(address):
    with pytest.raises(ConfigError, match=r"parties\[2\].address is not host:port") as caught:
        Manifest.loads(replaced("127.0.0.1:7003", address))
    assert caught.value.culprit == "helper"


def with_party(index, **changes):
    changed = list(parties())
    changed[index] = dataclasses.replace(changed[index], **changes)
    return tuple(changed)


def expect(message, culprit, **changes):
    with pytest.raises(ConfigError, match=message) as caught:
        manifest(**changes)
    assert caught.value.culprit == culprit
    return caught.value


def test_party_refusals():
    expect(
        r"parties\[3\].name is also that of parties\[1\]", "hospital", parties=with_party(3, name="hospital")
    )
    expect(
        r"parties\[3\].address is also that of parties\[1\]", "dna_company", parties=with_party(3, port=7002)
    )
    same = IDENTITIES["hospital"].certificate_pem
    expect(
        r"parties\[3\].certificate is also that of parties\[1\]",
        "dna_company",
        parties=with_party(3, certificate_pem=same),
    )
    other = Identity.generate("other").certificate_pem
    expect(
        r"parties\[3\].certificate bears the name other",
        "dna_company",
        parties=with_party(3, certificate_pem=other),
    )
    expect(r"parties\[3\].certificate: ", "dna_company", parties=with_party(3, certificate_pem="x"))
    expect(
        "party has no role",
        "visitor",
        parties=(*parties(), Party("visitor", "h", 1, Identity.generate("visitor").certificate_pem)),
    )
    error = expect("roles.helper is an evaluator too", "hospital", helper="hospital")
    assert "three organisations" in error.hint
    expect("parties must be 2 to 64", None, parties=parties()[:1])


def test_certificates_out_of_time():
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    expired = Identity._generate("helper", now - 2 * day, now - day).certificate_pem
    early = Identity._generate("helper", now + day, now + 2 * day).certificate_pem
    error = expect(
        r"parties\[2\].certificate has expired", "helper", parties=with_party(2, certificate_pem=expired)
    )
    assert "privinfer keygen" in error.hint
    error = expect(
        r"parties\[2\].certificate is not valid yet", "helper", parties=with_party(2, certificate_pem=early)
    )
    assert "privinfer keygen" in error.hint


def test_other_backends_need_no_helper():
    made = manifest(
        backend="ckks",
        helper=None,
        evaluators=(),
        key_holders=("hospital", "dna_company", "helper"),
        threshold=2,
        inputs={"x": "hospital", "y": "helper", "z": "dna_company"},
    )
    assert made.helper is None
    assert Manifest.loads(made.raw) == made


# -- key holders -----------------------------------------------------------------------------------


def ckks(**changes):
    """A session under encryption: three hold the key, the helper's name is one of them."""
    fields = {
        "backend": "ckks",
        "helper": None,
        "evaluators": (),
        "key_holders": ("hospital", "dna_company", "helper"),
        "threshold": 3,
    }
    return manifest(**(fields | changes))


def test_key_holders_round_trip():
    made = ckks(threshold=2)
    assert 'key_holders = ["hospital", "dna_company", "helper"]' in made.dumps()
    assert "threshold = 2" in made.dumps()
    assert Manifest.loads(made.raw) == made
    assert Manifest.loads(made.raw).digest() == made.digest() != ckks().digest()
    assert made.roles_of("helper") == ["key_holder"]
    assert made.roles_of("hospital") == ["owner", "key_holder"]
    assert ckks(key_holders=("helper", "dna_company", "hospital")).digest() != ckks().digest()


def test_all_key_holders_are_needed_where_nothing_is_said():
    raw = ckks().dumps().replace("threshold = 3\n", "").encode()
    assert Manifest.loads(raw).threshold == 3
    raw = ckks().dumps().replace("evaluators = []\n", "").encode()
    assert Manifest.loads(raw) == ckks()
    assert "key_holders" not in manifest().dumps()
    assert manifest().threshold == 0


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_thresholds(threshold):
    assert ckks(threshold=threshold).threshold == threshold


@pytest.mark.parametrize("threshold", [0, -1, 4, True, 2.0, "2", None])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ConfigError, match=r"roles.threshold is not in 1..3") as caught:
        ckks(threshold=threshold)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("threshold = 3", 'threshold = "3"', "roles.threshold is not an integer"),
        ("threshold = 3", "threshold = true", "roles.threshold is not an integer"),
        ("threshold = 3", "threshold = 4", r"roles.threshold is not in 1..3"),
        ('["hospital", "dna_company", "helper"]', '"hospital"', "roles.key_holders is not an array"),
        ('["hospital", "dna_company", "helper"]', "[1, 2]", r"roles.key_holders\[0\] is not a string"),
        ("threshold = 3", "thresholds = 3", "roles.thresholds is not a known key"),
    ],
)
def test_key_holders_in_a_file(old, new, words):
    text = ckks().dumps()
    assert old in text
    with pytest.raises(ConfigError, match=words):
        Manifest.loads(text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_holders": ("hospital", "hospital", "helper")}, "names a party twice"),
        ({"key_holders": ("hospital", "helper", "nobody")}, r"roles.key_holders\[2\]"),
        ({"key_holders": ("helper",), "threshold": 1}, "two or more"),
        ({"key_holders": (), "threshold": 0}, "two or more"),
        ({"evaluators": ("startup", "hospital")}, "neither evaluators nor a helper"),
        ({"helper": "helper"}, "neither evaluators nor a helper"),
        ({"key_holders": ("hospital", "dna_company"), "threshold": 2}, "party has no role"),
    ],
)
def test_key_holders_that_make_no_sense(changes, words):
    with pytest.raises(ConfigError, match=words):
        ckks(**changes)


@pytest.mark.parametrize("changes", [{"key_holders": ("hospital", "helper")}, {"threshold": 1}])
def test_key_holders_of_other_backends(changes):
    with pytest.raises(ConfigError, match="makes sense for ckks only"):
        manifest(**changes)


def test_a_draft_with_key_holders(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.pem").write_text(IDENTITIES[name].certificate_pem)
    parties_of = "".join(
        f'[[parties]]\nname = "{n}"\naddress = "127.0.0.1:{7001 + k}"\ncertificate_file = "{n}.pem"\n'
        for k, n in enumerate(NAMES)
    )
    draft = tmp_path / "draft.toml"
    draft.write_text(
        """version = 1
backend = "ckks"
[roles]
model_owner = "startup"
key_holders = ["hospital", "helper", "patient"]
threshold = 2
[inputs]
xray = "hospital"
dna = "dna_company"
[receivers]
risk = "patient"
"""
        + parties_of
    )
    sealed = Manifest.seal(draft, MODEL)
    assert (sealed.key_holders, sealed.threshold) == (("hospital", "helper", "patient"), 2)
    assert Manifest.loads(sealed.raw) == sealed


def test_hostile_files(tmp_path):
    for raw in (b"\xff\xfe", b"\x00" * 100, b"", b"[" * 4000, b"a." * 2000 + b"a = 1", b"=" * 100):
        with pytest.raises(ConfigError):
            Manifest.loads(raw)
    (tmp_path / "long").write_bytes(b"#" * 80 + b"\n#" * (1 << 20))
    with pytest.raises(ConfigError, match="longer than"):
        Manifest.load(tmp_path / "long")
    with pytest.raises(ConfigError, match="cannot read"):
        Manifest.load(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot read"):
        Manifest.load(tmp_path)


def test_hostile_files_cost_little():
    line = b"[" + b".".join([b"a"] * 2000) + b"]\n"
    start = time.thread_time()
    with pytest.raises(ConfigError):
        Manifest.loads(b"".join(line.replace(b"a]", b"b%d]" % i) for i in range(255)))
    assert time.thread_time() - start < 5


def test_too_many_parties():
    entry = RAW[RAW.index(b"[[parties]]") :]
    with pytest.raises(ConfigError, match="parties has more than 64"):
        Manifest.loads(RAW + entry * 13)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_only_config_errors(data):
    """Random damage never ends in anything but a ConfigError."""
    raw = bytearray(RAW)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        size = data.draw(st.integers(0, 60))
        raw[at : at + size] = data.draw(
            st.binary(max_size=20) | st.sampled_from([b"[]", b'""', b"1", b"{}", b"\n"])
        )
    try:
        Manifest.loads(bytes(raw))
    except ConfigError:
        return


# -- exact mode ------------------------------------------------------------------------------------

HOLDERS = {"key_holders": ("hospital", "patient"), "threshold": 2}


def test_exact_mode_round_trip():
    made = manifest(backend="ckks", nonlinear="exact", **HOLDERS)
    assert Manifest.loads(made.raw) == made
    assert b'nonlinear = "exact"' in made.raw
    assert b"nonlinear" not in RAW  # files from before it existed keep their bytes
    assert Manifest.loads(RAW).nonlinear == "polynomial"


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("nonlinear is none of", {"backend": "ckks", "nonlinear": "rough", **HOLDERS}),
        ("nonlinear makes sense for ckks only", {"backend": "mpc"}),
        ("nonlinear makes sense for ckks only", {"backend": "crypten"}),
        ("roles.evaluators must be two for exact mode", {"evaluators": ("startup",)}),
        ("roles.helper is missing, and exact mode needs one", {"helper": None}),
        ("roles.helper is an evaluator too", {"helper": "hospital"}),
        ("roles.key_holders must be two", {"key_holders": ("hospital",), "threshold": 1}),
        ("all key holders in exact mode", {"threshold": 1}),
        ("roles.threshold is not in 1..2", {"threshold": 3}),
    ],
)
def test_exact_mode_refuses(message, changes):
    fields = {"backend": "ckks", "nonlinear": "exact", **HOLDERS} | changes
    with pytest.raises(ConfigError, match=message):
        manifest(**fields)


def test_polynomials_have_neither_evaluators_nor_a_helper():
    with pytest.raises(ConfigError, match="neither evaluators nor a helper"):
        manifest(backend="ckks", **HOLDERS)
