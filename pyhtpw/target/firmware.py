"""Builds `examples/firmware` for a QEMU board: the library, an image in flash, and the application that runs it.

    board = firmware.board_named("mps2-an386")
    built = firmware.build(board, Image.open("model.htpw"), schedule="boot", opt="-O3")

The library is compiled once per (core, compiler, flags) to `libhtpw.a` and kept; an application is linked with it for each image,
schedule and board. Where memory is, is read from the linker scripts `examples/firmware/boards/*.ld`, and what does not fit is what
the linker says does not fit. `pyhtpw.target.session` runs the result, `pyhtpw.target.measure` measures it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ConfigError, ToolError
from pyhtpw.model import Image, Plan
from pyhtpw.target import toolchain

FOLDER = toolchain.ROOT / "examples" / "firmware"
SOURCES = ("startup.c", "console.c", "image.S")
SCHEDULES = {"boot": 0, "lazy": 1, "streamed": 2, "installed": 3}  # enum htpw_schedule
FLOATS = ("auto", "soft", "hard")
FPU = {"cortex-m4": "fpv4-sp-d16", "cortex-m7": "fpv5-sp-d16", "cortex-m33": "fpv5-sp-d16"}
PAGE, ERASE = 256, 4096  # geometry of the flash store, as in main.c
STACK = 4096  # bytes reserved for the stack when nobody says otherwise
STACKS = {"microbit": 2560}  # boards with little RAM


class FitError(ConfigError):
    """An image does not fit a board. `needed` and `there` are bytes of `region` (FLASH, RAM or STORE)."""

    def __init__(self, board: str, region: str, needed: int, there: int, what: str) -> None:
        remedy = "take a smaller image or a schedule that needs less" if region != "STORE" else "use boot or lazy on this board"
        super().__init__(f"{what} does not fit {board}: {region} needs {needed:,} bytes, {there:,} are there: {remedy}")
        self.region, self.needed, self.there = region, needed, there


@dataclass(frozen=True)
class Board:
    """A machine of QEMU with its core and memory, as its linker script says. `memory`: region -> (address, bytes)."""

    name: str
    cpu: str
    memory: dict[str, tuple[int, int]]

    @property
    def script(self) -> Path:
        """Its linker script."""
        return FOLDER / "boards" / f"{self.name}.ld"


def boards() -> dict[str, Board]:
    """The boards that there are linker scripts for, smallest core first. Raises ToolError without a checkout of the project."""
    found = []
    for path in sorted((FOLDER / "boards").glob("*.ld")):
        text = path.read_text()
        cpu = re.search(r"(cortex-m\d+)", text)[1]
        regions = re.findall(r"(\w+) \(\w+\)\s*: ORIGIN = (\w+), LENGTH = (\d+)([KM]?)", text)
        memory = {name: (int(at, 0), int(size) << {"": 0, "K": 10, "M": 20}[unit]) for name, at, size, unit in regions}
        found.append(Board(path.stem, cpu, memory))
    if not found:
        raise ToolError(f"{FOLDER} has no boards: building firmware needs a checkout of the project, not only its wheel")
    return {board.name: board for board in sorted(found, key=lambda b: int(b.cpu.removeprefix("cortex-m")))}


def board_named(name: str) -> Board:
    """The board of that name; raises ConfigError if there is none."""
    known = boards()
    if name not in known:
        raise ConfigError(f"unknown board {name!r}: use one of {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class Settings:
    """How firmware is compiled.

    Attributes
    ----------
    opt : str
        -O0 .. -O3, -Os or -Oz.
    compiler : str
        "auto", "gcc" or "clang".
    float_abi : str
        "soft", "hard", or "auto": hard where Helium needs it, else soft.
    defines : tuple of str
        Macros for the library, NAME or NAME=value.
    selftest : bool
        Whether the firmware contains the library's self-test, which needs every part of the library.
    peer : tuple of Path or None
        Folder of headers and library of a CMSIS-NN of the user's own, for the cmsis_nn backend.
    """

    opt: str = "-O3"
    compiler: str = "auto"
    float_abi: str = "auto"
    defines: tuple[str, ...] = ()
    selftest: bool = True
    peer: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class Library:
    """A built libhtpw.a: its folder, which also has a stack-usage file (.su) beside each object."""

    folder: Path
    compiler: toolchain.Compiler
    flags: tuple[str, ...]

    @property
    def archive(self) -> Path:
        """The archive."""
        return self.folder / "libhtpw.a"

    @property
    def backend(self) -> str:
        """Name of the backend that it chooses for itself."""
        return (self.folder / "backend").read_text()


@dataclass(frozen=True)
class Firmware:
    """A linked program.

    Attributes
    ----------
    board, settings, schedule
        What it was built for.
    elf : toolchain.Elf
    library : Library
    image : bytes
        What lies in its flash.
    pack : bytes or None
        The code pack that it will receive.
    plan : Plan
        Memory needs that it was built with.
    folder : Path
        Its objects and stack-usage files.
    """

    board: Board
    settings: Settings
    schedule: str
    elf: toolchain.Elf
    library: Library
    image: bytes
    pack: bytes | None
    plan: Plan
    folder: Path

    @property
    def arena(self) -> int:
        """Bytes of the arena that its schedule needs."""
        return {"streamed": self.plan.streamed_arena, "installed": self.plan.installed_arena}.get(self.schedule, self.plan.arena)


def _core(board: Board, settings: Settings) -> tuple[toolchain.Cpu, str, tuple[str, ...]]:
    """The core as `toolchain` knows it, the float ABI, and the flags that select the FPU."""
    if settings.float_abi not in FLOATS:
        raise ConfigError(f"unknown float ABI {settings.float_abi!r}: use one of {', '.join(FLOATS)}")
    if board.cpu == "cortex-m55":
        soft = settings.float_abi == "soft"  # Helium's registers are those of the hard ABI
        return toolchain.CPUS["cortex-m55-nomve" if soft else "cortex-m55"], "soft" if soft else "hard", ()
    core = toolchain.cpu_named(board.cpu)
    if settings.float_abi != "hard":
        return core, "soft", ()
    if board.cpu not in FPU:
        raise ConfigError(f"{board.name}: {board.cpu} has no floating-point unit: use --float soft")
    return core, "hard", (f"-mfpu={FPU[board.cpu]}",)


def _target(tool: toolchain.Compiler, core: toolchain.Cpu, abi: str, fpu: tuple[str, ...]) -> list[str]:
    flags = list(tool.target(core))
    if tool.kind == "gcc":
        flags += fpu
    elif abi == "hard":
        flags = [flag.replace("-eabi", "-eabihf") for flag in flags]
    return [*flags, f"-mfloat-abi={abi}"]


def library(board: Board, settings: Settings) -> Library:
    """Compiles libhtpw.a for a board, or finds it where it was built before.

    Raises
    ------
    ConfigError
        For an unknown option.
    MissingToolError, ToolError
        If there is no compiler, or it fails; warnings are failures.
    """
    if not re.fullmatch(r"-O[0123sz]", settings.opt):
        raise ConfigError(f"unknown optimisation {settings.opt!r}: use -O0, -O1, -O2, -O3, -Os or -Oz")
    for define in settings.defines:
        if not re.fullmatch(r"[A-Za-z_]\w*(=\w*)?", define):
            raise ConfigError(f"{define!r} is not a macro: use NAME or NAME=value")
    core, abi, fpu = _core(board, settings)
    tool = toolchain.find_compiler(settings.compiler)
    flags = [*_target(tool, core, abi, fpu), settings.opt, *toolchain.COMPILE, "-fstack-usage", "-Icsrc"]
    flags += [f"-D{define}" for define in settings.defines]
    if settings.peer is not None:
        flags += ["-DHTPW_CONFIG_CMSIS_NN", f"-isystem{settings.peer[0]}"]
    files = [*toolchain.sources(), toolchain.HERE / "runtime.c"]
    key = toolchain._fingerprint(["with the name of its backend", core.name, *tool.command, *flags], tool, files)
    final = toolchain.cache_folder() / f"lib-{core.name}-{tool.kind}{settings.opt}-{abi}-{key}"
    if not (final / "libhtpw.a").exists():
        with _scratch(final) as scratch:
            objects = _compile(tool, flags, files, scratch)
            _call([*_archiver(tool), "rcs", "libhtpw.a", *objects], scratch, "libhtpw.a")
            Path(scratch, "backend").write_text(_backend(tool, flags, scratch))
            _keep(scratch, final)
    return Library(final, tool, tuple(flags))


def _backend(tool: toolchain.Compiler, flags: Sequence[str], folder: str) -> str:
    """The backend that a library with these flags is best with: the first of htpw_backend_best whose macro its headers define."""
    probe = Path(folder, "probe.c")
    headers = sorted(str(path.relative_to(toolchain.CSRC)) for path in toolchain.CSRC.glob("backends/*/*.h"))
    probe.write_text("".join(f'#include "{name}"\n' for name in headers))
    _call([*tool.command, *flags, "-E", "-dM", str(probe), "-o", str(Path(folder, "macros"))], toolchain.ROOT, "the choice of a backend")
    macros = set(re.findall(r"#define (\w+)", Path(folder, "macros").read_text()))
    wide = "_wide" if "HTPW_CONFIG_CACHE_WIDE" in macros else ""
    order = {"CMSIS_NN": "cmsis_nn", "ARMV81M_MVE": "armv81m_mve", "ARMV7EM_DSP": f"armv7em_dsp{wide}", "THUMB": "thumb"}
    return next((name for macro, name in order.items() if f"HTPW_HAS_{macro}" in macros), "portable")


def _scratch(final: Path) -> tempfile.TemporaryDirectory:
    """A folder beside `final`, removed when it is left."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="building-", dir=final.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise ToolError(f"{final.parent}: cannot write ({error.strerror}): set HTPW_BUILD to a folder that you may write to") from error


def _keep(scratch: str, final: Path) -> None:
    """Renames a finished folder; another process may have been faster with the same."""
    try:
        os.rename(scratch, final)
    except OSError:
        if not final.is_dir():
            raise


def _archiver(tool: toolchain.Compiler) -> list[str]:
    if tool.kind == "gcc":
        path = tool.command[0].removesuffix("gcc") + "ar"
        return [path if shutil.which(path) else "arm-none-eabi-ar"]
    return [*tool.command[:-1], "ar"]


def _call(command: Sequence[str], cwd: str | Path, what: str) -> None:
    """Runs a tool; ToolError with the first line that says why."""
    zig = str(toolchain.cache_folder() / "zig")
    environment = {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig} | os.environ
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines() or ["no message"]
        overflow = [line for line in lines if "overflowed by" in line]
        first = next((line for line in lines if "error:" in line and "ld returned" not in line), lines[0])
        raise ToolError(" | ".join(overflow) or f"{Path(command[0]).name} failed for {what}: {first.strip()}")


def _compile(tool: toolchain.Compiler, flags: Sequence[str], files: Sequence[Path], folder: str) -> list[str]:
    """Compiles each file to an object in `folder`; returns their names."""
    names = ["_".join(f.relative_to(toolchain.CSRC).parts) if toolchain.CSRC in f.parents else f.name for f in files]
    objects = [str(Path(name).with_suffix(".o")) for name in names]

    def one(file: Path, name: str) -> None:
        source = os.path.relpath(file, toolchain.ROOT) if toolchain.ROOT in file.parents else str(file)
        command = [*tool.command, *flags, "-c", source, "-o", str(Path(folder, name))]
        _call(command, toolchain.ROOT, file.name)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(one, files, objects))
    return objects


def store_bytes(image: Image, backend: str) -> int:
    """Flash that a kernel store of an image needs with a backend."""
    plan, flash = ffi.new("struct htpw_plan *"), ffi.new("struct htpw_flash *")
    _native.check(lib.htpw_plan_memory(image._model, _native.backend_id(backend), plan), image.name)
    flash.page_bytes, flash.erase_bytes = PAGE, ERASE
    return lib.htpw_flash_bytes(plan, flash)


def build(
    board: Board,
    image: Image,
    schedule: str = "boot",
    settings: Settings = Settings(),
    *,
    pack: bytes | None = None,
    stack: int | None = None,
    extra: Sequence[Path] = (),
    application: Sequence[str] = ("main.c",),
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Firmware:
    """Builds the firmware of a board with an image in its flash.

    Parameters
    ----------
    schedule : str
        boot, lazy, streamed or installed.
    pack : bytes, optional
        A code pack that the firmware shall receive and store.
    stack : int, optional
        Bytes reserved for the stack.
    extra : sequence of Path
        More C files of the application.
    application : sequence of str
        Its own C files, in `FOLDER`.
    sizes : mapping
        More constants for it: NAME -> value becomes APP_NAME.

    Raises
    ------
    FitError
        If flash or RAM of the board are too small.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"unknown schedule {schedule!r}: use one of {', '.join(SCHEDULES)}")
    lib_built = library(board, settings)
    backend = lib_built.backend
    plan = image.plan(backend)
    config = _config(image, schedule, backend, plan, pack) + f"#define APP_SELFTEST {int(settings.selftest)}\n"
    config += "".join(f"#define APP_{name} ({value})\n" for name, value in sizes.items())
    if stack is None:
        stack = STACKS.get(board.name, STACK)
    sources = [*(FOLDER / name for name in (*SOURCES, *application)), *(Path(path).resolve() for path in extra)]
    scripts = [board.script, FOLDER / "firmware.ld", FOLDER / "app.h"]
    digest = hashlib.sha256("\0".join([lib_built.folder.name, board.name, schedule, config, str(stack)]).encode())
    for part in [image.data, pack or b"", *(path.read_bytes() for path in [*sources, *scripts, *FOLDER.rglob("*.h")])]:
        digest.update(hashlib.sha256(part).digest())
    if settings.peer is not None:
        digest.update(hashlib.sha256(settings.peer[1].read_bytes()).digest())
    final = toolchain.cache_folder() / f"app-{board.name}-{schedule}-{digest.hexdigest()[:24]}"
    if not (final / "firmware.elf").exists():
        with _scratch(final) as scratch:
            Path(scratch, "app_config.h").write_text(config)
            Path(scratch, "model.htpw").write_bytes(image.data)
            _link(board, lib_built, settings, sources, stack, scratch, image.name)
            _keep(scratch, final)
    core, _, _ = _core(board, settings)
    elf = toolchain.read_elf(final / "firmware.elf", core, lib_built.compiler, settings.opt)
    return Firmware(board, settings, schedule, elf, lib_built, image.data, pack, plan, final)


def _config(image: Image, schedule: str, backend: str, plan: Plan, pack: bytes | None) -> str:
    """The sizes that the application is compiled with."""
    flashed = schedule in ("streamed", "installed")
    arena = {"streamed": plan.streamed_arena, "installed": plan.installed_arena}.get(schedule, plan.arena)
    slots = 2 * -(-len(pack) // ERASE) * ERASE if pack else 0
    sizes = {
        "SCHEDULE": str(SCHEDULES[schedule]),
        "IMAGE_BYTES": len(image.data),
        "ARENA_BYTES": max(arena, 4),
        "CACHE_BYTES": 0 if flashed else plan.cache,
        "INPUT_BYTES": plan.input,
        "OUTPUT_BYTES": plan.output,
        "KERNEL_BYTES": max([kernel.bytes for kernel in image.cached], default=0),
        "STORE_BYTES": store_bytes(image, backend) if flashed else 0,
        "SLOT_BYTES": slots,
        "PACK_BYTES": len(pack) if pack else 0,
    }
    lines = [f"#define APP_{name} {value if isinstance(value, str) else f'{value}u'}" for name, value in sizes.items()]
    return "/* Made by pyhtpw from the image and its memory plan. */\n" + "\n".join(lines) + "\n"


def _link(board: Board, built: Library, settings: Settings, sources: Sequence[Path], stack: int, folder: str, name: str) -> None:
    tool = built.compiler
    flags = [*built.flags, f"-I{FOLDER}", f"-I{folder}"]
    objects = _compile(tool, [f for f in flags if f != "-fstack-usage"], [s for s in sources if s.suffix == ".S"], folder)
    objects += _compile(tool, flags, [s for s in sources if s.suffix != ".S"], folder)
    core, abi, fpu = _core(board, settings)
    command = [*tool.command, *_target(tool, core, abi, fpu), "-static", "-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none"]
    command += ["-Wl,-e,app_reset"]
    script = board.script.read_text().replace("INCLUDE firmware.ld", (FOLDER / "firmware.ld").read_text())
    Path(folder, "layout.ld").write_text(script.replace("APP_STACK_BYTES", str(stack)))
    command += ["-Wl,-T,layout.ld", *objects, str(built.archive)]
    command += [str(settings.peer[1])] if settings.peer else []
    command += ["-Wl,--fatal-warnings", "-lgcc"]  # which zig takes for its compiler-rt
    try:
        _call([*command, "-o", "firmware.elf"], folder, f"{name} on {board.name}")
    except ToolError as error:
        found = re.findall(r"region [`'](\w+)'.*?overflowed by (\d+)", str(error))
        if not found:
            raise
        region, over = max(((r, int(n)) for r, n in found), key=lambda entry: entry[1])
        there = board.memory[region][1]
        raise FitError(board.name, region, there + over, there, name) from error
