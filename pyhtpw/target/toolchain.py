"""Cross-compiles `csrc/` for Cortex-M and reads sizes and symbols from the ELF.

Two compilers serve: GNU (`arm-none-eabi-gcc`) and clang as it comes in the `ziglang` wheel, for machines on which nothing
but pip may install. An ELF is built once per (sources, flags, compiler) and kept; every file appears by rename, so that
processes may build at the same time.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyhtpw.errors import ConfigError, MissingToolError, ToolError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent if (HERE.parent / "csrc").is_dir() else HERE.parent.parent  # installed; a checkout
CSRC = ROOT / "csrc"

# Roots of a link: every function of the library, or what a firmware that runs images calls.
LIBRARY = ("htpw_*",)
API = ("htpw_model_open", "htpw_plan_memory", "htpw_bind", "htpw_run")

COMPILE = (
    "-mthumb",
    "-std=c99",
    "-ffreestanding",
    "-fno-strict-aliasing",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
)
LINK = (
    "-static",
    "-nostdlib",
    "-Wl,--fatal-warnings",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
    "-Wl,-e,htpw_target_return",
)
INSTALL = "type 'apt-get install gcc-arm-none-eabi' or 'pip install ziglang', or set HTPW_ARM_GCC to a compiler"


@dataclass(frozen=True)
class Cpu:
    """A core: flags for GNU, clang's (zig's) name, and the emulator's model (None: only `qemu` runs it).

    The library has no float, so the float ABI is soft, which makes sure that nothing slips in unseen; Helium needs the
    registers of the hard one, and there the floating-point instructions are left out instead.
    """

    name: str
    gcc: tuple[str, ...]
    zig: str
    unicorn: str | None
    float_abi: str = "soft"


CPUS = {
    cpu.name: cpu
    for cpu in (
        Cpu("cortex-m0", ("-mcpu=cortex-m0",), "cortex_m0", "UC_CPU_ARM_CORTEX_M0"),
        Cpu("cortex-m3", ("-mcpu=cortex-m3",), "cortex_m3", "UC_CPU_ARM_CORTEX_M3"),
        Cpu("cortex-m4", ("-mcpu=cortex-m4",), "cortex_m4", "UC_CPU_ARM_CORTEX_M4"),
        Cpu("cortex-m7", ("-mcpu=cortex-m7",), "cortex_m7", "UC_CPU_ARM_CORTEX_M7"),
        Cpu("cortex-m33", ("-mcpu=cortex-m33",), "cortex_m33", "UC_CPU_ARM_CORTEX_M33"),
        Cpu("cortex-m55", ("-mcpu=cortex-m55+nofp",), "cortex_m55+mve", None, float_abi="hard"),
        Cpu("cortex-m55-nomve", ("-mcpu=cortex-m55+nomve+nofp",), "cortex_m55", None),
    )
}


def cpu_named(name: str) -> Cpu:
    """The core of that name; raises ConfigError if there is none."""
    if name not in CPUS:
        raise ConfigError(f"unknown core {name!r}: use one of {', '.join(CPUS)}")
    return CPUS[name]


@dataclass(frozen=True)
class Compiler:
    """A cross compiler: kind "gcc" or "clang", the command that starts it, one line of version."""

    kind: str
    command: tuple[str, ...]
    version: str

    def target(self, cpu: Cpu) -> tuple[str, ...]:
        """The flags that select a core."""
        if self.kind == "gcc":
            return cpu.gcc
        # zig by itself adds undefined-behaviour traps, which would be measured as code of the library, and strips the
        # symbols of small builds unless there is debug information to keep
        return ("-target", "thumb-freestanding-eabi", f"-mcpu={cpu.zig}", "-fno-sanitize=all", "-g")


def _first_line(command: Sequence[str]) -> str | None:
    """First line that a command prints, or None if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [""])[0].strip()


@functools.cache
def _gcc(path: str) -> Compiler | None:
    command = shutil.which(path)
    version = command and _first_line([command, "--version"])
    return Compiler("gcc", (command,), version) if command and version else None


@functools.cache
def _clang() -> Compiler | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    command = (sys.executable, "-m", "ziglang")
    version = _first_line([*command, "version"])
    return Compiler("clang", (*command, "cc"), f"clang of zig {version}") if version else None


def find_compiler(compiler: str = "auto") -> Compiler:
    """The cross compiler: "gcc", "clang" (the ziglang wheel), or "auto", which takes the first of the two that is there.

    Raises
    ------
    ConfigError
        If `compiler` is none of the three.
    MissingToolError
        If there is none; the message says what to type.
    """
    if compiler not in ("auto", "gcc", "clang"):
        raise ConfigError(f"unknown compiler {compiler!r}: use auto, gcc or clang")
    named = os.environ.get("HTPW_ARM_GCC")
    if compiler != "clang":
        if found := _gcc(named or "arm-none-eabi-gcc"):
            return found
        if named:
            raise ToolError(f"HTPW_ARM_GCC is {named!r}, which is not a compiler that runs: correct or unset it")
        if compiler == "gcc":
            raise MissingToolError("arm-none-eabi-gcc is missing: type 'apt-get install gcc-arm-none-eabi' or set HTPW_ARM_GCC")
    if found := _clang():
        return found
    if compiler == "clang":
        raise MissingToolError(f"the ziglang wheel is missing: type '{sys.executable} -m pip install ziglang'")
    raise MissingToolError(f"no cross compiler for Arm: {INSTALL}")


def _version(distribution: str) -> str | None:
    """Version of an installed Python package, without importing it (unicorn must not come into this process)."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def tools() -> dict[str, str | None]:
    """What this folder can use on this machine: name -> version, or None if it is missing."""
    found: dict[str, str | None] = {}
    for kind in ("gcc", "clang"):
        try:
            found[kind] = find_compiler(kind).version
        except ToolError:
            found[kind] = None
    return found | {name: _version(name) for name in ("unicorn", "pyelftools", "numba")}


@dataclass(frozen=True)
class Symbol:
    """A function or object of the ELF. `address` has no Thumb bit; `section` is ".text", ".rodata" and so on."""

    name: str
    address: int
    size: int
    section: str
    is_function: bool


@dataclass(frozen=True)
class Segment:
    """What is loaded to one place: `size` bytes at `address`, of which `data` are given and the rest zero."""

    address: int
    size: int
    data: bytes
    writable: bool


@dataclass(frozen=True)
class Elf:
    """A linked program.

    Attributes
    ----------
    sizes : dict
        Bytes of ".text", ".rodata", ".data", ".bss"; absent sections are 0.
    symbols : dict
        Name -> Symbol. Of static ones that share a name, all but the first are called name@address.
    marks : dict
        Addresses that the linker script defines, such as the ends of the stack.
    attributes : dict
        Of .ARM.attributes: tag -> value, for example "TAG_CPU_NAME" -> "7E-M".
    """

    path: Path
    cpu: Cpu
    compiler: Compiler
    opt: str
    sizes: dict[str, int]
    symbols: dict[str, Symbol]
    marks: dict[str, int]
    segments: tuple[Segment, ...]
    attributes: dict[str, str]

    def address(self, name: str) -> int:
        """Address of a symbol, with the Thumb bit if it is a function; raises ConfigError if there is none."""
        if name in self.marks:
            return self.marks[name]
        if name not in self.symbols:
            raise ConfigError(f"{self.path.name} has no symbol {name!r}")
        symbol = self.symbols[name]
        return symbol.address | int(symbol.is_function)

    def place(self, address: int) -> str:
        """An address as "function+0x12", or "0x..." if no function is there."""
        for symbol in self.symbols.values():
            if symbol.is_function and symbol.address <= (address & ~1) < symbol.address + symbol.size:
                return f"{symbol.name}+{(address & ~1) - symbol.address:#x}"
        return f"{address:#x}"

    @property
    def text_of_library(self) -> int:
        """Bytes of the library's own functions: .text less the harness, the compiler's helpers and padding."""
        return sum(
            symbol.size
            for symbol in self.symbols.values()
            if symbol.is_function and symbol.name.startswith("htpw_") and not symbol.name.startswith("htpw_target_")
        )


def sources() -> list[Path]:
    """The C files of the library, those of csrc/sources.txt. Raises ToolError where the package was installed without them."""
    listed = CSRC / "sources.txt"
    if not listed.is_file():
        raise ToolError(f"{CSRC} has no C files: building for Cortex-M needs a checkout of the project, not only its wheel")
    return [CSRC / name for name in listed.read_text().split()]


def cache_folder() -> Path:
    """Where ELFs are kept: HTPW_BUILD, or `pyhtpw/target` in the user's cache."""
    if named := os.environ.get("HTPW_BUILD"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyhtpw" / "target"


def _fingerprint(command: Sequence[str], compiler: Compiler, files: Sequence[Path]) -> str:
    """Hash of all that an ELF depends on."""
    digest = hashlib.sha256("\0".join([compiler.version, *command]).encode())
    for path in sorted({*files, *CSRC.rglob("*.h")}):
        digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def build(
    cpu: str | Cpu = "cortex-m4",
    *,
    opt: str = "-O3",
    compiler: str = "auto",
    extra: Sequence[str | os.PathLike] = (),
    roots: Sequence[str] = LIBRARY,
    layout: str | None = None,
    defines: Sequence[str] = (),
) -> Elf:
    """Compiles and links the library and the harness for one core.

    Parameters
    ----------
    cpu : str or Cpu
        One of `CPUS`.
    opt : str
        -O0 .. -O3, -Os or -Oz.
    compiler : str
        As `find_compiler` takes it.
    extra : sequence of paths
        More C files to link in, compiled with the same flags. They may include "htpw.h", but no headers of their own, since
        a program is kept by the contents of what it was made from.
    roots : sequence of str
        Functions (`*` stands for any letters) that are linked, with whatever they need and nothing else. The default is the
        whole library; `API` is what firmware takes, and how its size is measured.
    layout : str, optional
        Text of a linker script with ROOTS in it, instead of that of the emulator.
    defines : sequence of str
        Macros, NAME or NAME=value, such as HTPW_CONFIG_NO_ARMV7EM_DSP, which leaves a backend out, or HTPW_WITH_ATTEND=0, which
        leaves an operator out (csrc/htpw_config.h).

    Raises
    ------
    ToolError
        If there is no compiler, no `csrc`, or the build fails; warnings are failures.
    """
    core = cpu if isinstance(cpu, Cpu) else cpu_named(cpu)
    if not re.fullmatch(r"-O[0123sz]", opt):
        raise ConfigError(f"unknown optimisation {opt!r}: use -O0, -O1, -O2, -O3, -Os or -Oz")
    for define in defines:
        if not re.fullmatch(r"[A-Za-z_]\w*(=\w*)?", define):
            raise ConfigError(f"{define!r} is not a macro: use NAME or NAME=value")
    tool = find_compiler(compiler)
    more = [Path(path).resolve() for path in extra]
    for path in more:
        if not path.is_file():
            raise ConfigError(f"{path}: no such C file")
    files = [*sources(), HERE / "runtime.c", *more]
    before, after = [*tool.target(core), f"-mfloat-abi={core.float_abi}", opt, *COMPILE, "-Icsrc"], [*LINK, "-lgcc"]
    before += [f"-D{define}" for define in defines]
    # zig's compiler driver knows no --undefined, so the linker script says what to keep
    kept = " ".join(f"{section}.{name}" for name in roots for section in (".text", ".text.unlikely"))  # the second of cold functions
    script = (layout or (HERE / "cortex_m.ld").read_text()).replace("ROOTS", kept)
    folder = cache_folder()
    path = folder / f"{core.name}-{tool.kind}{opt}-{_fingerprint([*before, *after, script], tool, files)}.elf"
    if not path.exists():
        # relative names and the project's root as working folder, so that the same sources make the same bytes anywhere
        names = [os.path.relpath(file, ROOT) if file not in more else str(file) for file in files]
        _compile([*tool.command, *before, *names, *after], script, path)
    return read_elf(path, core, tool, opt)


def _compile(command: list[str], script: str, path: Path) -> None:
    """Runs the compiler with a linker script in a folder of its own, then renames the result to `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix="building-", dir=path.parent)
    except OSError as error:
        text = f"{path.parent}: cannot write ({error.strerror}): set HTPW_BUILD to a folder that you may write to"
        raise ToolError(text) from error
    try:
        output, layout = Path(scratch) / path.name, Path(scratch) / "layout.ld"
        layout.write_text(script)
        zig = str(path.parent / "zig")
        environment = {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig} | os.environ
        whole = [*command, f"-Wl,-T,{layout}", "-o", str(output)]
        done = subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.splitlines() or ["no message"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise ToolError(f"{Path(command[0]).name} failed for {path.name}: {first.strip()}")
        os.replace(output, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_elf(path: Path, cpu: Cpu, compiler: Compiler, opt: str) -> Elf:
    """Reads what `build` linked. Raises ToolError if pyelftools is missing."""
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise MissingToolError(f"pyelftools is missing: type '{sys.executable} -m pip install pyelftools'") from error
    with path.open("rb") as file:
        elf = ELFFile(file)
        sizes = dict.fromkeys((".text", ".rodata", ".data", ".bss"), 0)
        for section in elf.iter_sections():
            if section.name in sizes:
                sizes[section.name] = section["sh_size"]
        symbols, marks = _symbols(elf)
        segments = tuple(
            Segment(s["p_vaddr"], s["p_memsz"], s.data(), bool(s["p_flags"] & 2))
            for s in elf.iter_segments("PT_LOAD")
            if s["p_memsz"]
        )
        attributes = _attributes(elf.get_section_by_name(".ARM.attributes"))
    return Elf(path, cpu, compiler, opt, sizes, symbols, marks, segments, attributes)


def _symbols(elf) -> tuple[dict[str, Symbol], dict[str, int]]:
    """The functions and objects of an ELFFile, and the absolute addresses of the linker script."""
    symbols, marks = {}, {}
    for entry in elf.get_section_by_name(".symtab").iter_symbols():
        kind, index = entry["st_info"]["type"], entry["st_shndx"]
        if kind in ("STT_FUNC", "STT_OBJECT") and isinstance(index, int):
            section = elf.get_section(index).name
            function = kind == "STT_FUNC"
            address = entry["st_value"] & ~int(function)
            name = entry.name if entry.name not in symbols else f"{entry.name}@{address:#x}"
            symbols[name] = Symbol(name, address, entry["st_size"], section, function)
        elif index == "SHN_ABS" and entry.name.startswith("htpw_target_"):
            marks[entry.name] = entry["st_value"]
    return symbols, marks


def _attributes(section) -> dict[str, str]:
    """Tag -> value of .ARM.attributes."""
    found = {}
    for subsection in section.iter_subsections() if section is not None else ():
        for part in subsection.iter_subsubsections():
            found |= {attribute.tag: str(attribute.value) for attribute in part.iter_attributes()}
    return found
