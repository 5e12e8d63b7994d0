"""Commands: code packs and signatures."""

from pathlib import Path
from typing import Annotated

import typer

from pyhtpw.cli.common import Json, Seed, app, emit


@app.command("pack-codes")
def pack_codes(
    base: Annotated[Path, typer.Argument(help="Image that devices have.")],
    personalised: Annotated[Path, typer.Argument(help="Image with the codes and requantisation that they shall have.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Code pack to write.")] = Path("codes.htpc"),
    number: Annotated[int, typer.Option(help="Packs are ordered by it; devices refuse a lower one than before.", min=0)] = 1,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write what turns one image into another, the codes and requantisation that differ. --seed changes nothing."""
    from pyhtpw.image.codes import apply_pack, make_pack, parse_pack
    from pyhtpw.image.writer import save
    from pyhtpw.model import Image

    first = Image.open(base)
    data = make_pack(first.data, Image.open(personalised).data, number)
    Image(apply_pack(first.data, data), str(output))  # what a device will run must open
    save(data, output)
    entries = [{"operator": e.op, "part": e.part, "bytes": len(e.data)} for e in parse_pack(data).entries]
    if as_json:
        emit({"pack": str(output), "number": number, "bytes": len(data), "entries": entries})
    else:
        print(f"{output}: {len(data):,} bytes, pack {number}, new parts of {len({e['operator'] for e in entries})} operators")


@app.command()
def keygen(
    output: Annotated[Path, typer.Option("--output", "-o", help="Private key to write; + .pub: public.")] = Path("htpw.key"),
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Make a key pair for signatures. Keys come from the system's randomness: --seed changes nothing."""
    from pyhtpw import sign as signing

    public = signing.keygen(output)
    if as_json:
        emit({"private_key": str(output), "public_key": str(public)})
    else:
        print(f"{output}: private key, keep it secret\n{public}: public key, for devices and verify-signature")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="Image or code pack.")],
    key: Annotated[Path, typer.Option(help="Private key of `pyhtpw keygen`.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Signature to write; default: FILE.sig.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write the detached Ed25519 signature of a file. --seed changes nothing."""
    from pyhtpw.sign import sign_file

    signature = sign_file(file, key, output)
    emit({"file": str(file), "signature": str(signature)}) if as_json else print(f"{signature}: signature of {file}")


@app.command("verify-signature")
def verify_signature(
    file: Annotated[Path, typer.Argument(help="Image or code pack.")],
    public_key: Annotated[Path, typer.Option(help="Public key of `pyhtpw keygen`.")],
    signature: Annotated[Path | None, typer.Option(help="Signature; default: FILE.sig.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Check a detached signature; exit status 2 if it is not that of the file and the key. --seed changes nothing."""
    from pyhtpw.sign import verify_file

    chosen = signature or file.with_name(file.name + ".sig")
    verify_file(file, chosen, public_key)
    emit({"file": str(file), "signature": str(chosen), "valid": True}) if as_json else print(f"{file}: the signature is right")
