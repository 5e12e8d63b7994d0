"""The C library in every form that a firmware's build takes it: each list of files links a program, and CMake finds it.

NOT RUN: west, PlatformIO, the Arduino IDE and CMSIS-Pack tools themselves, which are not installed; their files are parsed as those
tools document, and what is listed is built.
"""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyhtpw import _native, _native_build
from pyhtpw._native import ffi, lib
from pyhtpw.errors import MissingToolError
from pyhtpw.target import toolchain

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
PROGRAM = """
#include "htpw.h"
int main(void) {
    static uint32_t memory[HTPW_SELFTEST_BYTES / 4];
    return htpw_selftest(HTPW_BACKEND_BEST, memory, sizeof memory);
}
"""


def run(*command, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def listed(kind: str, folder: Path) -> list[Path]:
    """The C files that a package names, as its own format says it."""
    if kind == "python":
        return [ROOT / name for name in _native_build.sources()]
    if kind == "target":
        return toolchain.sources()
    if kind == "platformio":
        library = json.loads((CSRC / "library.json").read_text())
        assert library["build"]["srcFilter"][0] == "-<*>"
        return [CSRC / library["build"]["srcDir"] / re.fullmatch(r"\+<(.+)>", rule)[1] for rule in library["build"]["srcFilter"][1:]]
    if kind == "arduino":  # every C file below src is compiled, with src on the include path
        run(sys.executable, CSRC / "packages.py", "--arduino", folder)
        fields = dict(line.split("=", 1) for line in (folder / "library.properties").read_text().splitlines())
        assert fields["name"] == "htpw" and (folder / "src" / fields["includes"]).is_file()
        return sorted((folder / "src").rglob("*.c"))
    assert kind == "cmsis-pack"
    package = ElementTree.parse(CSRC / "htpw.pdsc").getroot()
    files = [file.get("name") for file in package.iter("file") if file.get("category") == "source"]
    assert all((CSRC / file.get("name")).exists() for file in package.iter("file"))
    return [CSRC / name for name in files]


LISTS = ("python", "target", "platformio", "arduino", "cmsis-pack")


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, Path]:
    """Name relative to the sources' folder -> object for a Cortex-M4 with optimisation off, compiled once for all lists."""
    try:
        compiler = toolchain.find_compiler("gcc")
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    folder = tmp_path_factory.mktemp("objects")
    made = {}

    def compile_one(path: Path) -> None:
        name = path.relative_to(CSRC).as_posix()
        made[name] = folder / (name.replace("/", "-") + ".o")
        flags = ["-mcpu=cortex-m4", "-O0", *toolchain.COMPILE, f"-I{CSRC}"]
        run(*compiler.command, *flags, "-c", path, "-o", made[name])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sorted(CSRC.rglob("*.c"))))
    return made


def test_written_lists_follow_the_one_list():
    run(sys.executable, CSRC / "packages.py", "--check")
    on_disk = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*.c"))
    assert (CSRC / "sources.txt").read_text().split() == on_disk, "a file was added or removed: put it into csrc/sources.txt"


def test_switches_of_zephyr_are_those_of_the_library():
    names = []
    while (name := lib.htpw_part_name(len(names))) != ffi.NULL:
        assert lib.htpw_part_is_there(len(names)) == 1, "the Python package has everything"
        names.append(ffi.string(name).decode())
    text = (CSRC / "zephyr" / "Kconfig").read_text()
    assert re.findall(r"^config HTPW_WITH_(\w+)$", text, re.M) == names and len(set(names)) == len(names)


@pytest.mark.parametrize("kind", LISTS)
def test_a_program_links_from_each_list(kind, objects, tmp_path):
    files = listed(kind, tmp_path / "library")
    base = tmp_path / "library" / "src" if kind == "arduino" else CSRC
    names = [path.relative_to(base).as_posix() for path in files]
    if kind == "arduino":
        assert all((base / name).read_bytes() == (CSRC / name).read_bytes() for name in names)
    program = tmp_path / "main.c"
    program.write_text(PROGRAM)
    compiler = toolchain.find_compiler("gcc")
    flags = ["-mcpu=cortex-m4", "-mthumb", "-O0", f"-I{base}", "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,main"]
    inputs = [program, ROOT / "pyhtpw/target/runtime.c", *(objects[name] for name in names), "-lgcc"]
    run(*compiler.command, *flags, *inputs, "-o", tmp_path / "program.elf")


def test_the_library_needs_no_heap_and_no_libc(objects):
    """Undefined symbols of all objects together: memory functions, and the compiler's own helpers."""
    nm = shutil.which("arm-none-eabi-nm")
    if nm is None:
        pytest.skip("NOT RUN: arm-none-eabi-nm is missing")
    lines = run(nm, *objects.values()).splitlines()
    defined = {line.split()[-1] for line in lines if re.match(r"[0-9a-f]+ [A-Za-z] ", line)}
    wanted = {line.split()[-1] for line in lines if re.match(r"\s+U ", line)} - defined
    assert {name for name in wanted if not name.startswith("__aeabi_")} <= {"memcpy", "memset"}
    helpers = {"__aeabi_uldivmod", "__aeabi_ldivmod", "__aeabi_lmul", "__aeabi_llsl", "__aeabi_llsr", "__aeabi_lasr"}
    assert {name for name in wanted if name.startswith("__aeabi_")} <= helpers, "no floating point"


def test_the_header_is_one_of_cplusplus(tmp_path):
    tried = 0
    for compiler in ("g++", "clang++", "arm-none-eabi-g++"):
        if shutil.which(compiler):
            for standard in ("c++11", "c++20" if compiler != "arm-none-eabi-g++" else "c++17"):
                flags = ["-fsyntax-only", f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{CSRC}", "-xc++", "-"]
                run(compiler, *flags, input='#include "htpw.h"\nint main() { htpw_model m; return htpw_model_open(&m, nullptr, 0); }\n')
            tried += 1
    if not tried:
        pytest.skip("NOT RUN: there is no C++ compiler")


# CMake


def cmake(*arguments) -> None:
    run("cmake", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The library, built by CMake and installed."""
    if shutil.which("cmake") is None:
        pytest.skip("NOT RUN: cmake is missing")
    folder = tmp_path_factory.mktemp("cmake")
    cmake("-S", ROOT, "-B", folder / "build", f"-DCMAKE_INSTALL_PREFIX={folder / 'prefix'}", "-DCMAKE_BUILD_TYPE=Debug")
    cmake("--build", folder / "build", "-j2")
    cmake("--install", folder / "build")
    return folder / "prefix"


USES = {
    "find_package": "find_package(htpw 0.1 REQUIRED)",
    "add_subdirectory": f'add_subdirectory("{ROOT}" htpw)',
    "FetchContent": f'include(FetchContent)\nFetchContent_Declare(htpw SOURCE_DIR "{ROOT}")\nFetchContent_MakeAvailable(htpw)',
}


@pytest.mark.parametrize("use", USES)
def test_cmake_gives_the_target(use, installed, tmp_path):
    """A program of its own links htpw::htpw; what is built here is what was compiled once, or all of it with a small configuration."""
    (tmp_path / "main.c").write_text(PROGRAM)
    text = f"cmake_minimum_required(VERSION 3.16)\nproject(user C)\n{USES[use]}\nadd_executable(user main.c)\n"
    (tmp_path / "CMakeLists.txt").write_text(text + "target_link_libraries(user PRIVATE htpw::htpw)\n")
    cmake("-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed}")
    if use == "find_package":  # the others build the library once more, which the installed one has shown to work
        cmake("--build", tmp_path / "b")
        run(tmp_path / "b" / "user")
    else:
        help_text = run("cmake", "--build", tmp_path / "b", "--target", "help")
        assert "htpw" in help_text and "run_image" not in help_text, "examples are the project's own"


@pytest.mark.parametrize("compiler", ("gcc", "clang"))
def test_toolchain_files_build_the_library(compiler, tmp_path):
    needed = {"gcc": "arm-none-eabi-gcc", "clang": "clang"}[compiler]
    if shutil.which("cmake") is None or shutil.which(needed) is None:
        pytest.skip(f"NOT RUN: cmake or {needed} is missing")
    (tmp_path / "less.h").write_text("#define HTPW_CONFIG_SMALL\n#define HTPW_WITH_ATTEND 0\n")
    toolchain_file = CSRC / "cmake" / f"arm-none-eabi-{compiler}.cmake"
    cmake("-S", ROOT, "-B", tmp_path / "b", f"-DCMAKE_TOOLCHAIN_FILE={toolchain_file}", "-DHTPW_CPU=cortex-m33",
          f"-DHTPW_CONFIG_FILE={tmp_path / 'less.h'}")
    cmake("--build", tmp_path / "b", "-j2")
    nm = shutil.which("arm-none-eabi-nm") or shutil.which("nm")
    symbols = run(nm, tmp_path / "b" / "libhtpw.a")
    assert " T htpw_run\n" in symbols and "htpw_backend_armv7em_dsp\n" not in symbols, "the configuration has been read"


ZEPHYR = """
cmake_minimum_required(VERSION 3.16)
project(application C)
function(zephyr_library_named name)
  add_library(${name} STATIC)
endfunction()
function(zephyr_library_sources)
  target_sources(htpw PRIVATE ${ARGN})
endfunction()
function(zephyr_library_compile_options)
  target_compile_options(htpw PRIVATE ${ARGN})
endfunction()
function(zephyr_library_compile_definitions)
  target_compile_definitions(htpw PRIVATE ${ARGN})
endfunction()
function(zephyr_include_directories)
  target_include_directories(htpw PUBLIC ${ARGN})
endfunction()
set(CONFIG_HTPW y)
set(CONFIG_HTPW_SMALL y)
SWITCHES
add_subdirectory("MODULE" module)
add_executable(user main.c)
target_link_libraries(user PRIVATE htpw)
"""


def test_the_zephyr_module_builds_with_its_switches(tmp_path):
    """Zephyr's own functions are stood in for by five of CMake; the module's file is the real one."""
    if shutil.which("cmake") is None:
        pytest.skip("NOT RUN: cmake is missing")
    names = re.findall(r"^config (HTPW_WITH_\w+)$", (CSRC / "zephyr" / "Kconfig").read_text(), re.M)
    switches = "\n".join(f"set(CONFIG_{name} y)" for name in names if name != "HTPW_WITH_CODEBOOK")
    (tmp_path / "CMakeLists.txt").write_text(ZEPHYR.replace("SWITCHES", switches).replace("MODULE", str(CSRC / "zephyr")))
    codebook = lib.HTPW_LEFT_OUT_FIRST - 20 - 7
    call = "htpw_selftest(HTPW_BACKEND_BEST, memory, sizeof memory)"
    assert call in PROGRAM
    (tmp_path / "main.c").write_text(PROGRAM.replace(call, f"{call} != {codebook}"))  # its image needs what is left out
    assert "HTPW_WITH_CODEBOOK" in _native.text(codebook)
    cmake("-S", tmp_path, "-B", tmp_path / "b")
    cmake("--build", tmp_path / "b", "-j2")
    run(tmp_path / "b" / "user")
    assert re.search(r"^name: htpw$", (CSRC / "zephyr" / "module.yml").read_text(), re.M)
