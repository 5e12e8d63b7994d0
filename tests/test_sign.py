"""Signatures: right ones are accepted, anything changed is not, keys are kept safe, and a missing PyNaCl says what to type."""

import hashlib
import os
import stat
import subprocess
import sys

import pytest

from pyhtpw import sign
from pyhtpw.errors import ConfigError, MissingToolError, SignatureError

nacl = pytest.importorskip("nacl.signing", reason="NOT RUN: PyNaCl is not installed: pip install 'pyhtpw[sign]'")


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "a.key", sign.keygen(tmp_path / "a.key")


def command(*arguments) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "pyhtpw", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}, timeout=60)


def test_a_signature_is_ed25519_over_the_digest(keys):
    key = bytes.fromhex(keys[0].read_text())
    data = b"an image"
    signature = sign.sign(data, key)
    assert len(signature) == 64 and signature == nacl.SigningKey(key).sign(hashlib.sha256(data).digest()).signature
    public = bytes.fromhex(keys[1].read_text())
    assert public == bytes(nacl.SigningKey(key).verify_key) and sign.is_signed(data, signature, public)


def test_anything_changed_is_refused(keys):
    key, public = (bytes.fromhex(path.read_text()) for path in keys)
    data = b"an image"
    signature = sign.sign(data, key)
    for bit in range(8 * 64):
        bad = bytearray(signature)
        bad[bit // 8] ^= 1 << bit % 8
        assert not sign.is_signed(data, bytes(bad), public)
    assert not sign.is_signed(data + b"\0", signature, public)
    assert not sign.is_signed(data, signature[:-1], public)
    other = bytes(nacl.SigningKey.generate().verify_key)
    assert not sign.is_signed(data, signature, other) and not sign.is_signed(data, signature, bytes(32))


def test_files(keys, tmp_path):
    file = tmp_path / "model.htpw"
    file.write_bytes(b"an image")
    signature = sign.sign_file(file, keys[0])
    assert signature.name == "model.htpw.sig" and len(signature.read_bytes()) == 64
    sign.verify_file(file, signature, keys[1])
    file.write_bytes(b"another image")
    with pytest.raises(SignatureError, match="model.htpw: .*is not its signature"):
        sign.verify_file(file, signature, keys[1])
    signature.write_bytes(b"x")
    with pytest.raises(SignatureError, match="it has 1 bytes, not 64"):
        sign.verify_file(file, signature, keys[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.key", "a.key.pub", "model.htpw", "model.htpw.sig"]


def test_private_keys_are_private_and_never_overwritten(keys):
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    before = keys[0].read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        sign.keygen(keys[0])
    assert keys[0].read_bytes() == before


def test_bad_keys_and_missing_files_are_named(keys, tmp_path):
    file = tmp_path / "model.htpw"
    with pytest.raises(ConfigError, match="model.htpw: cannot read the file to sign"):
        sign.sign_file(file, keys[0])
    file.write_bytes(b"x")
    for text in ("", "ab", "zz" * 32, "é"):
        (tmp_path / "bad.key").write_text(text)
        with pytest.raises(ConfigError, match="bad.key: is not a key"):
            sign.sign_file(file, tmp_path / "bad.key")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises((ConfigError, ValueError), match="cannot write"):
        sign.keygen(tmp_path / "plain" / "a.key")


def test_without_pynacl_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nacl", None)
    monkeypatch.setitem(sys.modules, "nacl.signing", None)
    with pytest.raises(MissingToolError, match=r"pip install 'pyhtpw\[sign\]'"):
        sign.sign(b"", bytes(32))


def test_commands(tmp_path):
    key, file = tmp_path / "k.key", tmp_path / "model.htpw"
    file.write_bytes(b"an image")
    assert "keep it secret" in command("keygen", "-o", key).stdout
    assert f'"signature": "{file}.sig"' in command("sign", file, "--key", key, "--json").stdout
    arguments = ("verify-signature", file, "--signature", f"{file}.sig", "--public-key", f"{key}.pub")
    assert "the signature is right" in command(*arguments).stdout
    file.write_bytes(b"an omage")
    refused = command(*arguments)
    assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1
    assert "is not its signature" in refused.stderr
    assert command("keygen", "-o", key).returncode == 2
