"""Builds that leave parts of the library out: the same bytes, refused images, and how small the code gets."""

import base64
import ctypes
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyhtpw import _native, _native_build
from pyhtpw.errors import ConfigError, ImageError, MissingToolError
from pyhtpw.export import c
from pyhtpw.image.integer import AddScalars, Generated, Generator, IntegerModel, Matrix, Op, Requant, Stored, Tensor, Tiled, Window
from pyhtpw.image.writer import write
from pyhtpw.model import Image
from pyhtpw.target import Emulator, toolchain
from pyhtpw.target.model import TargetModel

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "vectors" / "images"
API = toolchain.API


def network(width: int = 16, length: int = 40, classes: int = 2) -> IntegerModel:
    """A tiled 1-D network with the operators of the demo's: stem, depthwise, generated 1x1, residual add, gap, fc."""
    rng = np.random.default_rng(11)

    def int8(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    def requant(channels: int, shift: int) -> Requant:
        return Requant(rng.integers(16384, 32768, channels) << 16, np.full(channels, shift), rng.integers(-900, 900, channels))

    def tiled() -> Generated:
        return Generated(int8(width * width // 32, 8) // 16, (width, width))

    stem = Window((1, 7), stride=(1, 2), padding=(0, 3))
    kept = Window((1, 5), padding=(0, 2))
    half = length // 2
    add = AddScalars(20, (20000 << 16, 17000 << 16, 30000 << 16), (-1, 0, -19))
    ops = (
        Op("stem", "conv", (0,), Tensor(1, half, width, 3), 3, 127, Stored(int8(width, 1, 7, 1)), requant(width, -9), stem),
        Op("depthwise", "depthwise", (1,), Tensor(1, half, width, -2), -2, 127, Stored(int8(1, 5, width)), requant(width, -9), kept),
        Op("pointwise", "conv1x1", (2,), Tensor(1, half, width, 1), -128, 127, tiled(), requant(width, -9)),
        Op("pointwise2", "conv1x1", (3,), Tensor(1, half, width, 0), -128, 127, tiled(), requant(width, -9)),
        Op("add", "add", (4, 2), Tensor(1, half, width, 4), add=add),
        Op("gap", "avgpool", (5,), Tensor(1, 1, width, 4), window=Window((1, half), stride=(1, half))),
        Op("fc", "fc", (6,), Tensor(1, 1, classes, 0), weights=Stored(int8(classes, width)), requant=requant(classes, -9)),
    )
    generator = Generator(8, (Matrix(int8(12, 8), rng.integers(-400, 400, 12), 30000 << 16, -7),))
    heads = (Tiled(Matrix(int8(32, 12), np.zeros(32, np.int64), 25000 << 16, -6)),)
    return IntegerModel(Tensor(1, length, 1, -5), ops, generators=(generator,), heads=heads)


@pytest.fixture(scope="module")
def image() -> Image:
    return Image(write(network()), "network")


@pytest.fixture(scope="module")
def windows(image) -> np.ndarray:
    size = image.plan().input
    noise = np.random.default_rng(3).integers(-128, 128, (4, size)).astype(np.int8)
    return np.concatenate([noise, np.full((1, size), -128, np.int8), np.full((1, size), 127, np.int8)])


def golden(name: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Image, windows and logits of one of the golden images."""
    told = json.loads((GOLDEN / f"{name}.json").read_text())
    windows = np.frombuffer(base64.b64decode(told["windows"]["int8_base64"]), np.int8).reshape(told["windows"]["shape"])
    return (GOLDEN / f"{name}.htpw").read_bytes(), windows, np.array(told["logits"], np.int8)


def test_what_an_image_needs(image):
    assert {name for name, needs in c.parts(image).items() if needs} == {
        "CONV", "DEPTHWISE", "CONV1X1", "FC", "ADD", "AVGPOOL", "STORED8", "TILED"}
    for path in GOLDEN.glob("*.htpw"):
        needed = {name for name, needs in c.parts(Image.open(path)).items() if needs}
        assert ("NARROW" in needed) == ("narrow" in path.stem) and ("PLANES" in needed) == path.stem.endswith("_2d"), path
        kind = path.stem.split("_")[0].upper().replace("FACTORIZED", "FACTORISED")
        assert kind.rstrip("2") in needed or kind in needed, path


def test_unknown_parts_are_refused(image):
    with pytest.raises(ConfigError, match="unknown part 'CONVOLUTION'"):
        c.switches(image, keep=["CONVOLUTION"])
    with pytest.raises(ConfigError, match="unknown code 'tiny'"):
        c.switches(image, code="tiny")
    assert c.switches(image, keep=["HOOK"])["HOOK"] and not c.switches(image)["HOOK"]


# On the host: a shared library built for one image runs it, and refuses others


class Library:
    """The C library, built with some macros, by ctypes: structs are bytes, whose sizes the library tells."""

    def __init__(self, folder: Path, macros: tuple[str, ...]) -> None:
        path = folder / "libtrimmed.so"
        flags = ["-std=c99", "-O0", "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
        files = [str(ROOT / name) for name in _native_build.sources()]
        command = [*_native_build.compiler(), *flags, *(f"-D{macro}" for macro in macros), f"-I{ROOT / 'csrc'}", *files, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.lib = ctypes.CDLL(str(path))
        self.lib.htpw_error_text.restype = ctypes.c_char_p
        self.lib.htpw_sizeof_model.restype = self.lib.htpw_sizeof_context.restype = ctypes.c_size_t

    def open(self, data: bytes) -> int:
        """Error code of htpw_model_open; keeps the model."""
        self.image = _native.aligned(len(data))
        self.image[:] = np.frombuffer(data, np.uint8)
        self.model = _native.aligned(self.lib.htpw_sizeof_model())
        return self.lib.htpw_model_open(self.at(self.model), self.at(self.image), ctypes.c_size_t(len(data)))

    def at(self, array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def run(self, windows: np.ndarray, outputs: int) -> np.ndarray:
        """Logits of windows, with the best backend of the build."""
        plan = (ctypes.c_uint32 * 6)()
        assert self.lib.htpw_plan_memory(self.at(self.model), 0, plan) == 0
        context, arena = _native.aligned(self.lib.htpw_sizeof_context()), _native.aligned(plan[0])
        cache = _native.aligned(plan[1])
        memory = (self.at(arena), ctypes.c_size_t(plan[0]), self.at(cache), ctypes.c_size_t(plan[1]))
        assert self.lib.htpw_bind(self.at(context), self.at(self.model), 0, *memory, 0) == 0
        out = np.empty((len(windows), outputs), np.int8)
        for window, logits in zip(np.ascontiguousarray(windows), out, strict=True):
            sizes = ctypes.c_size_t(window.size), ctypes.c_size_t(outputs)
            assert self.lib.htpw_run(self.at(context), self.at(window), sizes[0], self.at(logits), sizes[1]) == 0
        return out


@pytest.mark.parametrize("name, code", [("tiled_1d", "small"), ("codebook_made_narrow_2d", "compact"), ("dense_narrow_1d", "small")])
def test_a_build_for_one_golden_image_gives_its_bytes(tmp_path, name, code):
    data, x, logits = golden(name)
    library = Library(tmp_path, c.macros(Image(data), code=code))
    assert library.open(data) == 0
    assert np.array_equal(library.run(x.reshape(len(x), -1), logits.shape[1]), logits)
    refused = 0
    for path in sorted(GOLDEN.glob("*.htpw")):
        other, built = Image.open(path), c.switches(Image(data), code=code)
        missing = {part for part, needs in c.parts(other).items() if needs and not built[part]}
        result = library.open(other.data)
        assert (result == 0) == (not missing), (path, missing)
        if missing:
            assert result <= -100
            text = library.lib.htpw_error_text(result).decode()
            assert re.search(r"HTPW_WITH_(\w+)", text)[1] in missing, text
            refused += 1
    assert refused > 20


# On an emulated Cortex-M4


@pytest.mark.parametrize("code, opt", [("compact", "-O3"), ("small", "-Os")])
def test_a_build_for_one_network_on_a_cortex_m4(image, windows, code, opt):
    """Same kernels and logits as the host's, another network refused, and code as small as the project aims at."""
    macros, limit = c.macros(image, code=code), {"compact": 14 * 1024, "small": 8 * 1024}[code]
    try:
        with Emulator("cortex-m4", compiler="gcc", opt=opt, defines=macros) as emulator:
            target = TargetModel(emulator, image.data, "network", "boot")
            assert np.array_equal(target.run_batch(windows), image.run_batch(windows))
            made, expected = target.kernels(), image.kernels()
            assert made.keys() == expected.keys() and all(np.array_equal(made[op], expected[op]) for op in expected)
            assert target.plan.arena <= image.plan("armv7em_dsp").arena
            with pytest.raises(ImageError, match="HTPW_WITH_ATTEND") as error:
                TargetModel(emulator, golden("attend_1d")[0], "other", "boot")
            assert type(error.value) is _native.ERRORS[_native.lib.HTPW_ERR_LEFT_OUT]
            with pytest.raises(ImageError, match="HTPW_WITH_LAZY"):
                TargetModel(emulator, image.data, "network", "lazy")
        elf = toolchain.build("cortex-m4", compiler="gcc", opt=opt, defines=macros, roots=API)
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    assert elf.text_of_library + elf.sizes[".rodata"] <= limit
    assert not {"htpw_maxpool_s8_ref", "htpw_conv1x1_s4_ref", "htpw_softmax_s8_ref", "htpw_pack_part"} & elf.symbols.keys()


@pytest.mark.parametrize("name", ["dense_narrow_1d", "tiled_2d", "factorised_1d"])
def test_small_builds_on_a_cortex_m4_give_golden_bytes(name):
    """Planes, shapes that are left to portable code, kernels of head by filter and packed 4-bit ones, with the small kernels."""
    data, x, logits = golden(name)
    model = Image(data, name)
    try:
        with Emulator("cortex-m4", compiler="gcc", opt="-Os", defines=c.macros(model, code="small")) as emulator:
            target = TargetModel(emulator, data, name, "boot")
            made, expected = target.kernels(), model.kernels()
            assert np.array_equal(target.run_batch(x.reshape(len(x), -1)), logits)
            assert all(np.array_equal(made[op], expected[op]) for op in expected)
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
