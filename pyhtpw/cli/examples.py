"""The examples that `--help` of every command ends with, in one table: what a user types, and why.

`tests/test_docs_commands.py` parses each of them with the command it belongs to, and refuses a command that has none.
"""

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": (
        "pyhtpw demo --out out/demo",
        "pyhtpw demo --data mitdb --data-dir ~/mitdb --out out/mitdb",
    ),
    "train": (
        "pyhtpw train --dry-run",
        "pyhtpw train --out out/mine --head tiled:hidden=8 --aware",
        "pyhtpw train --config run.toml --out out/mine --resume",
        "pyhtpw train --init-from out/mine --freeze --out out/tuned",
        "pyhtpw train --teacher-net resnet1d_small --teacher-steps 2000 --kd-alpha 0.5 --out out/taught",
    ),
    "quantise": ("pyhtpw quantise out/train -o model.npz", "pyhtpw quantise out/demo/run --ema -o averaged.npz"),
    "pack": (
        "pyhtpw pack model.npz -o model.htpw",
        "pyhtpw pack out/train --head stored:bits=4 -o plain.htpw",
        "pyhtpw pack out/train --head auto --budget 8192 -o best.htpw",
    ),
    "bill": ("pyhtpw bill model.htpw", "pyhtpw bill model.htpw --plot bill.svg", "pyhtpw bill model.htpw --json"),
    "pack-codes": ("pyhtpw pack-codes base.htpw personalised.htpw --number 2 -o codes.htpc",),
    "keygen": ("pyhtpw keygen -o release.key",),
    "sign": ("pyhtpw sign model.htpw --key release.key",),
    "verify-signature": ("pyhtpw verify-signature model.htpw --public-key release.key.pub",),
    "verify": ("pyhtpw verify model.htpw", "pyhtpw verify model.htpw --input windows.npy --windows 1000 --target-windows 4"),
    "run": ("pyhtpw run model.htpw windows.npy", "pyhtpw run model.htpw --count 8 --json"),
    "diff": ("pyhtpw diff old.htpw new.htpw", "pyhtpw diff old.htpw new.htpw --data synthetic-ecg --windows 64"),
    "trace": (
        "pyhtpw trace model.htpw --telling numpy --telling c --telling m4",
        "pyhtpw trace model.htpw --input windows.npy -o here.npz",
        "pyhtpw trace model.htpw --against here.npz",
    ),
    "report": ("pyhtpw report out/demo", "pyhtpw report out/demo/report.json -o page.html"),
    "sweep": ("pyhtpw sweep sweep.toml --workers 2", "pyhtpw sweep sweep.toml --scheduler tcp://10.0.0.5:8786"),
    "compress": (
        "pyhtpw compress model.htpw --budget 8192 --input windows.npy -o small.htpw",
        "pyhtpw compress model.htpw --budget 8192 --head stored:bits=4 -o plain.htpw",
    ),
    "data list": ("pyhtpw data list", "pyhtpw data list --data-dir ~/data --json"),
    "data check": ("pyhtpw data check mitdb --data-dir ~/mitdb",),
    "data fetch": ("pyhtpw data fetch mitdb --data-dir ~/data",),
    "results run": (
        "pyhtpw results run plan.toml --dry-run",
        "pyhtpw results run plan.toml --data-dir ~/data --jobs 2",
        "pyhtpw results run plan.toml --validation-only --only tiled",
    ),
    "results table": ("pyhtpw results table plan.toml",),
    "export c": ("pyhtpw export c model.htpw -o firmware/model.c", "pyhtpw export c model.htpw --code small --keep PACKS"),
    "export tflite": ("pyhtpw export tflite model.htpw -o model.tflite",),
    "export onnx": ("pyhtpw export onnx model.htpw -o model.onnx",),
    "import tflite": ("pyhtpw import tflite model.tflite -o model.htpw",),
    "target run": (
        "pyhtpw target run model.htpw --board mps2-an386",
        "pyhtpw target run model.htpw --all-boards --schedule boot --opt -Os",
        "pyhtpw target run base.htpw --codes codes.htpc --cut 0",
    ),
    "target report": (
        "pyhtpw target report model.htpw --html report.html",
        "pyhtpw target report model.htpw --constants costs.toml --json",
    ),
    "target monitor": (
        "pyhtpw target monitor model.htpw",
        "pyhtpw target monitor model.htpw --data-dir ~/mitdb --record 200 --seconds 60",
    ),
}


def commands(app: typer.Typer, prefix: str = "") -> dict[str, typer.models.CommandInfo]:
    """Every command of an application by the words that a user types, such as ``"export c"``."""
    found = {}
    for info in app.registered_commands:
        function = getattr(info.callback, "__name__", "")
        found[prefix + (info.name or function.replace("_", "-"))] = info
    for group in app.registered_groups:
        if group.typer_instance is not None:
            found |= commands(group.typer_instance, f"{prefix}{group.name} ")
    return found


def add_examples(app: typer.Typer) -> None:
    """Gives every command that has examples an epilog that shows them."""
    for name, info in commands(app).items():
        if name in EXAMPLES:
            lines = "\n".join(f"  {line}" for line in EXAMPLES[name])
            info.epilog = f"Examples:\n{lines}"
