"""The C side of signatures: examples/verify_signature.c with libsodium opens what PyNaCl signed, and nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest
import random_images

from pyhtpw import _native_build
from pyhtpw.image import write

ROOT = Path(__file__).parent.parent
sign = pytest.importorskip("pyhtpw.sign")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The example, compiled."""
    pytest.importorskip("nacl.signing", reason="NOT RUN: PyNaCl is not installed: pip install 'pyhtpw[sign]'")
    target = tmp_path_factory.mktemp("sodium") / "verify_signature"
    compiler = _native_build.compiler()
    probe = subprocess.run([*compiler, "-E", "-xc", "-"], input="#include <sodium.h>\n", capture_output=True, text=True)
    if shutil.which(compiler[0]) is None or probe.returncode:
        pytest.skip("NOT RUN: libsodium's header is missing: type 'apt-get install libsodium-dev'")
    flags = ["-std=gnu99", "-O1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / name for name in _native_build.sources()]
    subprocess.run([*compiler, *flags, "-o", target, ROOT / "examples/verify_signature.c", *sources, "-lsodium"], check=True)
    return target


def test_signed_images_open_and_others_do_not(program, tmp_path):
    image, key = tmp_path / "m.htpw", tmp_path / "key"
    image.write_bytes(write(random_images.example()))
    public = sign.keygen(key)
    signature = Path(f"{image}.sig")
    sign.sign_file(image, key)

    def opens() -> tuple[int, str]:
        run = subprocess.run([program, image, signature, public], capture_output=True, text=True)
        return run.returncode, run.stdout.strip()

    assert signature.exists() and opens() == (0, "opened")
    data = image.read_bytes()
    for at in (0, 50, len(data) - 1):  # also where only the padding is hit, which open alone might not see
        image.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert opens() == (1, "the signature was rejected")
    image.write_bytes(data)
    seal = signature.read_bytes()
    signature.write_bytes(seal[:10] + bytes([seal[10] ^ 4]) + seal[11:])
    assert opens() == (1, "the signature was rejected")
    signature.write_bytes(seal[:-1])
    assert opens() == (1, "the signature was rejected")
    signature.write_bytes(seal)
    other = sign.keygen(tmp_path / "other")
    public.write_bytes(other.read_bytes())
    assert opens() == (1, "the signature was rejected")
