"""Commands: firmware on emulated boards, run and measured."""

from pathlib import Path
from typing import Annotated

import typer

from pyhtpw.cli.common import DataDir, Json, Protocol, Seed, app, emit, load_data
from pyhtpw.errors import ConfigError

target = typer.Typer(no_args_is_help=True, help="Firmware on emulated boards: build, run, compare, measure.")
app.add_typer(target, name="target")

Image_ = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image.")]
Board = Annotated[str, typer.Option(help="QEMU board: microbit, mps2-an385, -an386, -an500, -an505 or mps3-an547.")]
Schedule = Annotated[str, typer.Option(help="boot, lazy, streamed, installed, or all.")]
Source = Annotated[Path | None, typer.Option("--input", help="Windows from a .npy file (int8, or floats to quantise).")]
DataSet = Annotated[str | None, typer.Option("--data", help="Test windows of synthetic-ecg or mitdb; default: seeded windows.")]
Count = Annotated[int, typer.Option("--count", help="How many windows.", min=1)]
Tool = Annotated[str, typer.Option(help="Cross compiler: auto, gcc or clang.")]
Opt = Annotated[str, typer.Option(help="Optimisation: -Os, -O2, -O3 ...")]
Float = Annotated[str, typer.Option("--float", help="Float ABI: soft, hard, or auto (hard where Helium needs it).")]
Defines = Annotated[list[str] | None, typer.Option("--define", help="Macro for the library, NAME or NAME=value; repeatable.")]
SelfTest = Annotated[bool, typer.Option("--selftest/--no-selftest", help="Have the library's self-test in the firmware.")]
Timeout = Annotated[float, typer.Option(help="Seconds after which a board counts as hung.", min=1)]


def _windows(image, source: Path | None, data: str | None, data_dir: Path | None, protocol: str | None, n: int, seed: int):
    """int8 windows, and what they are."""
    if source is not None and data is not None:
        raise ConfigError("--input and --data exclude each other: give one")
    if data is None:
        from pyhtpw.cli.running import read_windows as plain

        return plain(image, source, n, seed)[:n], str(source) if source else "seeded windows (synthetic)"
    windows = load_data(data, data_dir, protocol, seed, None, False).test.x[:n]
    if windows[0].size != image.plan().input:
        raise ConfigError(f"windows of {data} have {windows[0].size} samples, {image.name} takes {image.plan().input}")
    return image.quantise(windows), f"{len(windows)} test windows of {data}"


@target.command("run")
def run(
    image: Image_,
    board: Board = "mps2-an386",
    all_boards: Annotated[bool, typer.Option("--all-boards", help="Every board, one after the other.")] = False,
    schedule: Schedule = "all",
    source: Source = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    protocol: Protocol = None,
    count: Count = 8,
    codes: Annotated[Path | None, typer.Option(help="Code pack to send to the running board, with a power cut.")] = None,
    cut: Annotated[int, typer.Option(help="With --codes: the power fails in this operation of the flash.", min=0)] = 0,
    opt: Opt = "-O3",
    compiler: Tool = "auto",
    float_abi: Float = "auto",
    define: Defines = None,
    selftest: SelfTest = True,
    timeout: Timeout = 300,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Build firmware with the image in its flash, run it on emulated boards, and compare kernels and logits with C here and numpy.

    Status 0: no byte differs; 1: some do; 2: the image fits no board that was asked for, a tool is missing, or a board faults or
    hangs.
    """
    from pyhtpw.model import Image
    from pyhtpw.target import boards as on
    from pyhtpw.target.firmware import Settings

    opened = Image.open(image)
    x, what = _windows(opened, source, data, data_dir, protocol, count, seed)
    settings = Settings(opt, compiler, float_abi, tuple(define or ()), selftest)
    names = list(on.boards()) if all_boards else [board]
    pack = None
    if codes is not None:
        try:
            pack = codes.read_bytes()
        except OSError as error:
            raise ConfigError(f"{codes}: cannot read the code pack ({error.strerror})") from error
    rows = on.matrix(opened, x, names, on.schedules(schedule), settings, pack=pack, cut=cut, seconds=timeout)
    if all(row.refused is not None for row in rows):
        raise ConfigError("; ".join(dict.fromkeys(row.refused for row in rows)))
    differ = sum(row.differ for row in rows)
    if as_json:
        emit({"image": str(image), "input": what, "opt": opt, "compiler": compiler, "float": float_abi,
              "bytes_compared": sum(row.compared for row in rows), "bytes_differ": differ, "rows": [row.to_dict() for row in rows]})
    else:
        print(f"{image}: {what}")
        for row in rows:
            print(row.text())
        print(f"{sum(row.compared for row in rows):,} bytes compared, {differ} differ")
    raise typer.Exit(1 if differ else 0)


@target.command("report")
def report(
    image: Image_,
    board: Board = "mps2-an386",
    schedule: Annotated[str, typer.Option(help="boot, lazy, streamed or installed.")] = "boot",
    source: Source = None,
    html: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
    constants: Annotated[Path | None, typer.Option(help="TOML file with your cycle and energy constants.")] = None,
    opt: Opt = "-O3",
    compiler: Tool = "auto",
    float_abi: Float = "auto",
    define: Defines = None,
    selftest: SelfTest = True,
    timeout: Timeout = 300,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Measure firmware: flash from the ELF, SRAM and stack from the running board, instructions by phase and layer."""
    from pyhtpw.model import Image
    from pyhtpw.target import boards as on
    from pyhtpw.target import measure
    from pyhtpw.target.firmware import Settings

    opened = Image.open(image)
    x, _ = _windows(opened, source, None, None, None, 3, seed)
    settings = Settings(opt, compiler, float_abi, tuple(define or ()), selftest)
    found = measure.report(opened, on.board_named(board), schedule, settings, x[:3], constants=constants, seconds=timeout)
    if html is not None:
        from pyhtpw.target.measure_html import write_html

        write_html(found, html)
    if as_json:
        emit(found)
    else:
        for line in measure.lines(found):
            print(line)
        if html is not None:
            print(f"written: {html}")


@target.command("monitor")
def monitor(
    image: Image_,
    board: Board = "mps2-an386",
    data_dir: DataDir = None,
    record: Annotated[str, typer.Option(help="Record of MIT-BIH, with --data-dir.")] = "200",
    seconds: Annotated[int | None, typer.Option(help="Only so many seconds.", min=1)] = None,
    opt: Opt = "-O3",
    compiler: Tool = "auto",
    timeout: Timeout = 3600,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Stream an ECG, sample by sample, through the monitor on an emulated board; a decision per second, equal to the host's.

    Without --data-dir a minute of synthetic ECG with bad stretches. Status 1 if a decision differs.
    """
    import os

    from pyhtpw.model import Image
    from pyhtpw.target import boards as on
    from pyhtpw.target import monitor as ecg
    from pyhtpw.target.firmware import Settings

    opened = Image.open(image)
    folder = data_dir or (Path(os.environ["HTPW_DATA"]) if os.environ.get("HTPW_DATA") else None)
    x = ecg.synthetic(seconds or 60, seed) if folder is None else ecg.record(folder, record)
    if seconds is not None:
        x = x[: seconds * ecg.Constants.of(opened).rate]
    found = ecg.run(opened, on.board_named(board), Settings(opt=opt, compiler=compiler), x, seconds=timeout)
    found["input"] = "synthetic ECG (says nothing about patients)" if folder is None else f"MIT-BIH record {record}"
    if as_json:
        emit(found)
    else:
        print(f"{found['input']}, {found['seconds']} s on {found['board']} ({found['backend']}): {found['decisions']} decisions, "
              f"{found['differ']} differ from the host")
        print(f"ventricular {found['ventricular']}, other {found['other']}, none for bad signal {found['no_decision']}")
        if found["first"]:
            print(f"first: {found['first']}")
        for name, value in found["bill"].items():
            print(f"  {name.replace('_', ' '):28s} {value:>12,}" if value is not None else f"  {name}: not reached")
    raise typer.Exit(1 if found["differ"] else 0)
