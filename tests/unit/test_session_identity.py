"""Identities: what they show, what they refuse, how they rest on disk."""

import copy
import os
import pickle

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from privinfer.errors import ConfigError, ProtocolViolation
from privinfer.session import Identity, PublicIdentity


@pytest.fixture(scope="module")
def hospital():
    return Identity.generate("hospital")


def test_certificate_bears_the_name(hospital):
    cert = x509.load_pem_x509_certificate(hospital.certificate_pem.encode())
    assert [a.value for a in cert.subject] == ["hospital"]
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["hospital"]
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert hospital.fingerprint == cert.fingerprint(hashes.SHA256()).hex()


def test_repr_and_pickle_keep_the_key(hospital):
    assert repr(hospital) == f"Identity(name='hospital', fingerprint='{hospital.fingerprint}')"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(hospital, protocol)
    for way in (copy.copy, copy.deepcopy, Identity.__getstate__):
        with pytest.raises(TypeError):
            way(hospital)
    assert not hasattr(hospital, "__dict__")


def test_save_and_load(hospital, tmp_path):
    path = tmp_path / "hospital.key"
    old = os.umask(0)
    try:
        hospital.save(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    again = Identity.load(path)
    assert again.public == hospital.public
    assert again.private_pem() == hospital.private_pem() == path.read_bytes()
    hospital.public.verify(b"m", again.sign(b"m"))
    with pytest.raises(ConfigError, match="exists already"):
        Identity.generate("hospital").save(path)
    assert Identity.load(path).fingerprint == hospital.fingerprint


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o666, 0o620])
def test_readable_by_others_is_refused(hospital, tmp_path, mode):
    path = tmp_path / "k"
    hospital.save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="read by others") as caught:
        Identity.load(path)
    assert caught.value.hint == f"chmod 600 {path}"


def _write(path, data):
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def _pem(key, password=None):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def test_bad_files_are_refused(hospital, tmp_path):
    pem, cert = hospital.private_pem(), hospital.certificate_pem.encode()
    key = pem[: pem.index(b"-----BEGIN CERT")]
    bad = {
        "empty": b"",
        "noise": bytes(range(256)) * 8,
        "key only": key,
        "certificate only": cert,
        "two keys": key + pem,
        "two certificates": pem + cert,
        "too long": pem + b"#" * 70000,
        "garbled key": key.replace(b"MC4", b"MC5") + cert,
        "garbled certificate": key + cert.replace(b"MII", b"MXX"),
        "another key": _pem(Ed25519PrivateKey.generate()) + cert,
        "another kind": _pem(ec.generate_private_key(ec.SECP256R1())) + cert,
        "encrypted": _pem(Ed25519PrivateKey.generate(), b"pw") + cert,
    }
    for what, data in bad.items():
        with pytest.raises(ConfigError) as caught:
            Identity.load(_write(tmp_path / "k", data))
        assert "MC4" not in str(caught.value), what
    with pytest.raises(ConfigError, match="no such file"):
        Identity.load(tmp_path / "missing")
    with pytest.raises(ConfigError):
        Identity.load(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="regular file"):
        Identity.load(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["", "Hospital", "1st", "a" * 33, "a b", "a.b", "a\n", "-a", "ä", "a/b"])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigError):
        Identity.generate(name)


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_bad_days_are_refused(days):
    with pytest.raises(ConfigError):
        Identity.generate("a", days)


def test_names_at_the_limits():
    for name in ("a", "a" * 32, "dna_company", "x-1"):
        assert Identity.generate(name).public.name == name


def test_signatures(hospital):
    other = Identity.generate("startup")
    signature = hospital.sign(b"message")
    assert len(signature) == 64
    hospital.public.verify(b"message", signature)
    for message, sig in [
        (b"messagf", signature),
        (b"message", signature[:-1]),
        (b"message", b""),
        (b"message", other.sign(b"message")),
    ]:
        with pytest.raises(ProtocolViolation) as caught:
            hospital.public.verify(message, sig)
        assert caught.value.culprit == "hospital"


def test_signatures_have_their_own_domain(hospital):
    key = serialization.load_pem_private_key(hospital.private_pem(), None)
    with pytest.raises(ProtocolViolation):  # a bare Ed25519 signature, as TLS makes, is not ours
        hospital.public.verify(b"m", key.sign(b"m"))


def _certificate(key, common, san, signer=None):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, c) for c in common])
    good = x509.load_pem_x509_certificate(Identity.generate("a").certificate_pem.encode())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(good.not_valid_before_utc)
        .not_valid_after(good.not_valid_after_utc)
    )
    if san:
        names = x509.SubjectAlternativeName([x509.DNSName(s) for s in san])
        builder = builder.add_extension(names, critical=False)
    algorithm = None if isinstance(signer or key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer or key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def test_foreign_certificates_are_refused(hospital):
    key = Ed25519PrivateKey.generate()
    assert PublicIdentity.from_certificate(_certificate(key, ["a"], ["a"])).name == "a"
    bad = [
        _certificate(key, ["a"], []),
        _certificate(key, ["a"], ["b"]),
        _certificate(key, ["a"], ["a", "b"]),
        _certificate(key, ["a", "b"], ["a"]),
        _certificate(key, [], ["a"]),
        _certificate(key, ["A"], ["A"]),
        _certificate(key, ["a"], ["a"], signer=Ed25519PrivateKey.generate()),
        _certificate(ec.generate_private_key(ec.SECP256R1()), ["a"], ["a"]),
        "",
        "no certificate",
        "x" * 70000,
        hospital.certificate_pem * 2,
        hospital.certificate_pem.replace("MII", "MXX"),
        "\ud800",
    ]
    for pem in bad:
        with pytest.raises(ConfigError):
            PublicIdentity.from_certificate(pem)


def test_a_private_key_is_never_taken_for_a_certificate(hospital):
    with pytest.raises(ConfigError, match="private key"):
        PublicIdentity.from_certificate(hospital.private_pem().decode())
