"""`pyhtpw export c`: the pair of files compiles, runs with a library configured by it, and tells the true sizes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_parts import network
from typer.testing import CliRunner

from pyhtpw import _native, _native_build
from pyhtpw.cli import app
from pyhtpw.errors import ConfigError, ImageError
from pyhtpw.export import c
from pyhtpw.image.writer import write
from pyhtpw.model import Image

ROOT = Path(__file__).parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
MAIN = """
#include <stdio.h>
#include "network.h"
int main(void) {
    int8_t window[NETWORK_INPUT_BYTES], logits[NETWORK_OUTPUT_BYTES];
    if ((uintptr_t)network_image % 16 != 0 || fread(window, 1, sizeof window, stdin) != sizeof window) return 100;
    const int error = network_example(window, logits);
    fwrite(logits, 1, sizeof logits, stdout);
    return error != 0;
}
"""


@pytest.fixture(scope="module")
def image() -> Image:
    return Image(write(network()), "network")


def build(compiler: list[str], folder: Path, main: str) -> Path:
    """The pair, a program and a library configured by the pair's header."""
    (folder / "main.c").write_text(main)
    flags = ["-std=c99", "-O0", "-fno-strict-aliasing", *WARNINGS, '-DHTPW_CONFIG="network.h"', "-DNETWORK_EXAMPLE"]
    files = [folder / "main.c", folder / "network.c", *(ROOT / name for name in _native_build.sources())]
    command = [*compiler, *flags, f"-I{ROOT / 'csrc'}", f"-I{folder}", *files, "-lgcc", "-o", folder / "program"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def test_a_program_of_the_pair_gives_the_logits(image, tmp_path):
    c.export_c(image, tmp_path / "network.c", code="small")
    program = build(_native_build.compiler(), tmp_path, MAIN)
    for window in np.random.default_rng(6).integers(-128, 128, (3, image.plan().input)).astype(np.int8):
        done = subprocess.run([program], input=window.tobytes(), capture_output=True)
        assert done.returncode == 0 and np.array_equal(np.frombuffer(done.stdout, np.int8), image.run(window))


def test_the_pair_links_for_a_cortex_m4(image, tmp_path):
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("NOT RUN: arm-none-eabi-gcc is missing")
    c.export_c(image, tmp_path / "network.c", code="compact")
    flags = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-ffreestanding", "-nostdlib", "-Wl,-e,main"]
    call = "int8_t y[NETWORK_OUTPUT_BYTES]; return network_example((const int8_t *)network_image, y);"
    main = f'#include "network.h"\nint main(void) {{ {call} }}\n'
    build([*flags, str(ROOT / "pyhtpw/target/runtime.c")], tmp_path, main)


def test_both_headers_are_of_cplusplus(image, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("NOT RUN: g++ is missing")
    source, header = c.export_c(image, tmp_path / "network.c")
    unit = f'#include "{header}"\n#include "htpw.h"\nconst void *p = network_image;\n'
    flags = ["-std=c++11", "-fsyntax-only", *WARNINGS, f"-I{ROOT / 'csrc'}", "-xc++", "-"]
    subprocess.run(["g++", *flags], input=unit, text=True, check=True)
    assert source.read_text().count("\n") and "example" in header.read_text()


def test_the_constants_are_those_of_the_plan(image, tmp_path):
    _, header = c.export_c(image, tmp_path / "network.c", keep=["HOOK"])
    told = {name: int(value) for name, value in re.findall(r"^#define (\w+) (-?\d+)", header.read_text(), re.M)}
    assert told["NETWORK_IMAGE_BYTES"] == len(image.data)
    for backend in _native.BACKENDS:
        plan = image.plan(backend)
        for what in ("arena", "cache", "streamed_arena", "installed_arena"):
            assert told[f"NETWORK_{what.upper()}_BYTES_{backend.upper()}"] == getattr(plan, what)
    assert told["NETWORK_ARENA_BYTES"] == max(image.plan(name).arena for name in c.MCU)
    switches = {name[10:]: bool(value) for name, value in told.items() if name.startswith("HTPW_WITH_")}
    assert switches == c.switches(image, ["HOOK"]) and switches["HOOK"] and not switches["ATTEND"]
    values = re.search(r"_image\[\w+\] = \{(.+?)\}", (tmp_path / "network.c").read_text(), re.S)[1]
    assert bytes(int(value) for value in re.findall(r"\d+", values)) == image.data


def test_the_command(image, tmp_path):
    (tmp_path / "My model.htpw").write_bytes(image.data)
    done = CliRunner().invoke(app, ["export", "c", str(tmp_path / "My model.htpw"), "--json", "--keep", "PACKS"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["source"] == str(tmp_path / "my_model.c") and Path(told["header"]).is_file()
    assert told["parts"] == c.switches(image, ["PACKS"])


def test_bad_input(image, tmp_path):
    with pytest.raises(ConfigError, match="must end in .c"):
        c.export_c(image, tmp_path / "network.h")
    with pytest.raises(ConfigError, match="use .*my_model.c"):
        c.export_c(image, tmp_path / "My model.c")
    with pytest.raises(ConfigError, match="no letter or digit"):
        c.identifier("---")
    assert c.identifier("2 leads") == "model_2_leads"
    with pytest.raises(ImageError, match="cannot write"):
        (tmp_path / "file").write_text("")
        c.export_c(image, tmp_path / "file" / "network.c")
