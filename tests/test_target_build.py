"""Cross-compiling for Cortex-M: both compilers, every core, the cache of programs, what is said when a tool is missing."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyhtpw.errors import ConfigError, ToolError
from pyhtpw.target import toolchain

TOOLS = toolchain.tools()
COMPILERS = {"gcc": "arm-none-eabi-gcc", "clang": "the ziglang wheel"}


def need(compiler: str) -> None:
    """Skips, and says so, where a compiler or the ELF reader is missing."""
    if TOOLS["pyelftools"] is None:
        pytest.skip("NOT RUN: pyelftools is missing")
    if TOOLS[compiler] is None:
        pytest.skip(f"NOT RUN: {COMPILERS[compiler]} is missing")


def any_compiler() -> str:
    """A compiler that is there."""
    for compiler in COMPILERS:
        if TOOLS[compiler] is not None:
            need(compiler)
            return compiler
    pytest.skip("NOT RUN: there is no cross compiler")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("cpu", toolchain.CPUS)
def test_builds_without_warnings_for_every_core(cpu, compiler):
    need(compiler)
    elf = toolchain.build(cpu, compiler=compiler)
    assert elf.sizes[".data"] == 0 and elf.sizes[".bss"] == 0, "the library has no variables of its own"
    assert 0 < elf.text_of_library <= elf.sizes[".text"]
    assert all(elf.symbols[name].size > 0 and elf.symbols[name].section == ".text" for name in toolchain.API)
    assert elf.compiler.kind == compiler and elf.compiler.version
    assert elf.attributes["TAG_CPU_ARCH_PROFILE"] == str(ord("M"))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_firmware_has_only_what_it_calls(compiler):
    need(compiler)
    whole = toolchain.build("cortex-m4", compiler=compiler)
    firmware = toolchain.build("cortex-m4", compiler=compiler, roots=toolchain.API)
    assert firmware.text_of_library < whole.text_of_library
    assert set(toolchain.API) <= set(firmware.symbols)
    unused = "htpw_fully_connected_s8_ref"  # images run it as a 1x1 convolution of one row
    assert unused in whole.symbols and unused not in firmware.symbols
    assert not [name for name in whole.symbols if name.startswith("__aeabi_d")], "no floating point is linked"


def test_small_code_is_smaller():
    compiler = any_compiler()
    fast, small = (toolchain.build("cortex-m4", compiler=compiler, opt=opt, roots=toolchain.API) for opt in ("-O3", "-Os"))
    assert small.text_of_library < fast.text_of_library


def test_addresses_and_places():
    elf = toolchain.build("cortex-m4", compiler=any_compiler())
    run = elf.symbols["htpw_run"]
    assert elf.address("htpw_run") == run.address | 1
    assert elf.place(run.address + 4) == "htpw_run+0x4" and elf.place(run.address | 1) == "htpw_run+0x0"
    assert elf.place(0x123) == "0x123"
    assert elf.address("htpw_target_stack_low") < elf.address("htpw_target_stack_top")
    with pytest.raises(ConfigError, match="no symbol 'nothing'"):
        elf.address("nothing")


def test_builds_at_the_same_time_make_one_program(tmp_path, monkeypatch):
    compiler = any_compiler()
    monkeypatch.setenv("HTPW_BUILD", str(tmp_path))
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(toolchain.build, "cortex-m3", compiler=compiler, opt="-O1") for _ in range(3)]
        paths = {job.result().path for job in jobs}
    (path,) = paths
    assert list(tmp_path.glob("*.elf")) == [path] and not list(tmp_path.glob("building-*"))
    before = path.stat().st_mtime_ns
    assert toolchain.build("cortex-m3", compiler=compiler, opt="-O1").path.stat().st_mtime_ns == before


def test_a_warning_in_added_code_fails_and_leaves_nothing(tmp_path, monkeypatch):
    compiler = any_compiler()
    monkeypatch.setenv("HTPW_BUILD", str(tmp_path / "build"))
    source = tmp_path / "narrow.c"
    source.write_text("signed char narrow(int x);\nsigned char narrow(int x) { return x; }\n")
    with pytest.raises(ToolError, match=r"narrow\.c:2") as error:
        toolchain.build("cortex-m4", compiler=compiler, extra=[source])
    assert "\n" not in str(error.value)
    assert not [p for p in (tmp_path / "build").iterdir() if p.name != "zig"]


def test_missing_tools_say_what_to_type(monkeypatch):
    monkeypatch.setattr(toolchain, "_gcc", lambda path: None)
    monkeypatch.setattr(toolchain, "_clang", lambda: None)
    monkeypatch.delenv("HTPW_ARM_GCC", raising=False)
    for compiler, remedy in (("auto", "apt-get install"), ("gcc", "apt-get install"), ("clang", "pip install ziglang")):
        with pytest.raises(ToolError, match=remedy) as error:
            toolchain.find_compiler(compiler)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("HTPW_ARM_GCC", "/nowhere/gcc")
    with pytest.raises(ToolError, match="HTPW_ARM_GCC is '/nowhere/gcc'"):
        toolchain.find_compiler()
    found = toolchain.tools()
    assert found["gcc"] is None and found["clang"] is None


def test_an_installed_package_without_the_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "CSRC", tmp_path / "csrc")
    with pytest.raises(ToolError, match="has no C files.*checkout"):
        toolchain.sources()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cpu": "cortex-a53"}, "unknown core 'cortex-a53'"),
        ({"opt": "-Ofast"}, "unknown optimisation '-Ofast'"),
        ({"compiler": "tcc"}, "unknown compiler 'tcc'"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ConfigError, match=message):
        toolchain.build(**arguments)


def test_an_added_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such C file"):
        toolchain.build("cortex-m4", compiler=any_compiler(), extra=[tmp_path / "missing.c"])


def test_the_emulator_is_never_imported_here():
    """unicorn is GPL-2.0: only the worker's process may load it."""
    modules = "pyhtpw.target.emulator, pyhtpw.target.model, pyhtpw.target.toolchain, pyhtpw.target.worker"
    program = f"import sys, {modules}; pyhtpw.target.toolchain.tools(); sys.exit('unicorn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=toolchain.ROOT).returncode == 0
