"""Detached signatures (docs/SPEC.md section 11): Ed25519 over the SHA-256 of a whole file, image or code pack.

Key files hold 64 hexadecimal digits and a line feed. PyNaCl does the cryptography; nothing else in this package needs it.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError, MissingToolError, SignatureError
from pyhtpw.image.writer import save

KEY_BYTES, SIGNATURE_BYTES = 32, 64


def _nacl() -> Any:
    """PyNaCl's signing module."""
    try:
        import nacl.exceptions
        import nacl.signing
    except ImportError as error:
        raise MissingToolError(f"signatures need PyNaCl ({error}): pip install 'pyhtpw[sign]'") from error
    return nacl


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what}: {error.strerror}") from error


def _key(path: Path) -> bytes:
    text = _read(path, "key").strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path}: is not a key: a key file holds {2 * KEY_BYTES} hexadecimal digits; make one with 'pyhtpw keygen'"
        )
    return key


def keygen(path: Path) -> Path:
    """Writes a new private key to `path`, readable by its owner alone, and the public key to `path` + ".pub".

    Returns
    -------
    Path
        Of the public key.

    Raises
    ------
    ConfigError
        If there is a file already: a key that images in the field trust is not replaced by accident.
    """
    path = Path(path)
    public = path.with_name(path.name + ".pub")
    key = _nacl().signing.SigningKey.generate()
    for target in (path, public):
        if target.exists():
            raise ConfigError(f"{target}: exists; a key is never overwritten: choose another name")
    save(f"{bytes(key.verify_key).hex()}\n".encode(), public)
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.unlink(missing_ok=True)
        # created with its mode, so that the key is at no time readable by others
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(f"{bytes(key).hex()}\n".encode())
        os.replace(temporary, path)
    except OSError as error:
        public.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot write: {error.strerror}; choose a folder that you may write to") from error
    return public


def digest(data: bytes) -> bytes:
    """What is signed: SHA-256 of the whole file."""
    return hashlib.sha256(data).digest()


def sign(data: bytes, key: bytes) -> bytes:
    """The 64 bytes of a signature; `key` is the private key's 32 bytes."""
    return bytes(_nacl().signing.SigningKey(key).sign(digest(data)).signature)


def is_signed(data: bytes, signature: bytes, public: bytes) -> bool:
    """Whether `signature` belongs to `data` and to the public key's 32 bytes."""
    nacl = _nacl()
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        nacl.signing.VerifyKey(public).verify(digest(data), signature)
    except (nacl.exceptions.CryptoError, ValueError):
        return False
    return True


def sign_file(path: Path, key: Path, output: Path | None = None) -> Path:
    """Signs a file; the signature goes to `output`, by default `path` + ".sig"."""
    output = output or path.with_name(path.name + ".sig")
    save(sign(_read(path, "file to sign"), _key(key)), output)
    return output


def verify_file(path: Path, signature: Path, public: Path) -> None:
    """Raises SignatureError unless `signature` is that of the file and of the public key."""
    found = _read(signature, "signature")
    if len(found) != SIGNATURE_BYTES:
        raise SignatureError(f"{signature}: is not a signature: it has {len(found)} bytes, not {SIGNATURE_BYTES}")
    if not is_signed(_read(path, "signed file"), found, _key(public)):
        raise SignatureError(f"{path}: {signature} is not its signature by the key {public}: do not use the file")
