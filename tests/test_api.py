"""The public surface: its names and signatures are a snapshot, and every name does what it says, on many threads too."""

import inspect
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import random_images

import pyhtpw
import reference
from pyhtpw.errors import ConfigError, ImageError
from pyhtpw.image import bill, read_model, write
from pyhtpw.verify import sample_windows
from reference import synthesis

ROOT = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "api_snapshot.txt"
REAL = ROOT / "results" / "mitdb-first.htpw"


@pytest.fixture(scope="module")
def image() -> pyhtpw.Image:
    return pyhtpw.Image.from_bytes(write(random_images.example()), "example")


def _signature(value) -> str:
    """Parameters and defaults. Types are left to the type checker: how they print depends on the version of Python."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(value).parameters.values()]
    return str(inspect.Signature(bare))


def snapshot() -> str:
    """Names and signatures of the public surface, one a line."""
    lines = []
    for name in sorted(pyhtpw.__all__):
        value = getattr(pyhtpw, name)
        if inspect.ismodule(value):
            members = getattr(value, "__all__", None)
            if members is None:
                members = [n for n, v in vars(value).items() if not n.startswith("_") and getattr(v, "__module__", None) == value.__name__]
            for member in sorted(members):
                found = getattr(value, member)
                what = f"({', '.join(b.__name__ for b in found.__bases__)})" if inspect.isclass(found) else _signature(found)
                lines.append(f"{name}.{member}{what}")
        elif inspect.isclass(value):
            lines.append(name + _signature(value))
            for member, found in inspect.getmembers(value):
                if member.startswith("_"):
                    continue
                kind = inspect.getattr_static(value, member)
                if callable(found):
                    lines.append(f"{name}.{member}{_signature(found)}" + (" [class method]" if isinstance(kind, classmethod) else ""))
                elif not any(f.name == member for f in (fields(value) if hasattr(value, "__dataclass_fields__") else ())):
                    lines.append(f"{name}.{member}")
        else:
            lines.append(name + (_signature(value) if callable(value) else ""))
    return "\n".join(lines) + "\n"


def test_surface_is_the_snapshot():
    """A change of the public surface is made on purpose: `python tests/test_api.py` writes the snapshot again."""
    assert snapshot() == SNAPSHOT.read_text()


def test_public_names_are_few_typed_and_documented():
    assert len(pyhtpw.__all__) == 10 and dir(pyhtpw) == sorted(pyhtpw.__all__)
    assert (ROOT / "pyhtpw" / "py.typed").exists()
    for name in ("Image", "Layer", "Plan", "Diff", "pack"):
        assert getattr(pyhtpw, name).__doc__
    for name, member in inspect.getmembers(pyhtpw.Image):
        if not name.startswith("_"):
            assert member.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pyhtpw.nothing  # noqa: B018


def test_import_costs_next_to_nothing():
    """Counted in modules, not in milliseconds: `import pyhtpw` adds itself, and `Image` neither trainer nor command line."""
    code = """
import sys, numpy
before = set(sys.modules)
import pyhtpw
added = set(sys.modules) - before
assert added <= {"pyhtpw", "importlib", "typing"}, added
pyhtpw.Image, pyhtpw.pack, pyhtpw.verify, pyhtpw.kernels, pyhtpw.errors
heavy = {"numba", "scipy", "typer", "rich", "matplotlib", "wfdb", "unicorn"} & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_layers_are_those_of_the_file(image):
    parsed = image.parsed
    assert [layer.index for layer in image.layers] == list(range(len(parsed.ops)))
    assert sum(layer.macs for layer in image.layers) == parsed.macs
    assert sum(layer.bytes for layer in image.layers) < len(image.data)
    assert [layer.index for layer in image.layers if layer.is_cached] == [kernel.op for kernel in image.cached]
    named = image.layers[1]
    assert image.layer(1) is image.layer(named.name) is image.layer(named) is named
    for wrong in (-1, len(image.layers), "nothing"):
        with pytest.raises(ConfigError, match="no layer"):
            image.layer(wrong)


def test_synthesise_gives_every_kernel(image):
    """Generated, unpacked and stored kernels alike are those of the reference."""
    told = reference.read(image.data)
    seen = set()
    for layer in image.layers:
        if not layer.kernel_shape:
            with pytest.raises(ConfigError, match="has no kernel"):
                image.synthesise(layer)
            continue
        kernel = image.synthesise(layer.name)
        assert kernel.shape == layer.kernel_shape and kernel.dtype == np.int8
        assert np.array_equal(kernel, np.reshape(synthesis.weights(told, layer.index), layer.kernel_shape)), layer.name
        seen.add((layer.is_generated, layer.is_cached))
    assert {(True, True), (False, False)} <= seen


def test_bill_and_plan(image):
    assert image.bill() == bill(image.parsed)
    plan = image.plan("armv7em_dsp")
    sram = image.bill("armv7em_dsp")["sram"]
    assert (sram["arena"], sram["cache"]) == (plan.arena, plan.cache)
    assert image.plan().input == np.prod(image.input_shape) and image.plan().output == image.classes
    with pytest.raises(ConfigError, match="unknown backend"):
        image.plan("nothing")


def test_pack_writes_what_opens(image, tmp_path):
    path = tmp_path / "again.htpw"
    written = pyhtpw.pack(read_model(image.data), path)
    assert path.read_bytes() == written.data == image.data == pyhtpw.pack(read_model(image.data)).data
    assert pyhtpw.Image.open(path).name == str(path)
    with pytest.raises(ImageError, match="cannot read the image"):
        pyhtpw.Image.open(tmp_path / "none.htpw")


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 7, 83])
def test_batches_are_runs(image, n, threads):
    x = sample_windows(image, n, seed=n)
    expected = np.array([image.run(window) for window in x], np.int8).reshape(n, image.classes)
    found = image.run_batch(x, threads=threads)
    assert found.dtype == np.int8 and found.shape == (n, image.classes) and np.array_equal(found, expected)
    assert np.array_equal(found, image.run_batch(x.reshape(n, np.prod(image.input_shape)), threads, "portable"))


def test_batches_refuse_what_they_cannot_run(image):
    x = sample_windows(image, 3)
    for bad in (x.astype(np.float32), x[0].ravel(), x[:, :, 1:], x.reshape(1, -1)):
        with pytest.raises(ImageError, match="windows"):
            image.run_batch(bad)
    with pytest.raises(ConfigError, match="at least 1"):
        image.run_batch(x, threads=0)
    with pytest.raises(ConfigError, match="unknown backend"):
        image.run_batch(x, threads=2, backend="nothing")
    with pytest.raises(ImageError, match="network takes"):
        pyhtpw.Image.open(REAL).quantise(np.zeros((2, 7)))


def test_many_threads_share_one_image(image):
    """Runs, batches and syntheses at once, with more threads than cores: everybody gets the bytes that one thread gets."""
    x = sample_windows(image, 60)
    expected, layer = image.run_batch(x), next(layer for layer in image.layers if layer.is_generated)
    kernel = image.synthesise(layer)
    start = threading.Barrier(8)

    def work(i: int) -> bool:
        start.wait()
        good = True
        for j in range(12):
            if (i + j) % 3 == 0:
                good &= np.array_equal(image.run_batch(x, threads=1 + i % 3), expected)
            elif (i + j) % 3 == 1:
                good &= np.array_equal(image.run(x[(7 * i + j) % len(x)]), expected[(7 * i + j) % len(x)])
            else:
                good &= np.array_equal(image.synthesise(layer), kernel)
        return good

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_c_runs_without_the_gil():
    """While one thread is in the library, this one goes on counting: with the GIL held it could not before the batch is done."""
    image = pyhtpw.Image.open(REAL)
    x = sample_windows(image, 512)
    image.run_batch(x[:1], backend="portable")
    inside, done = threading.Event(), threading.Event()
    before = sys.getswitchinterval()

    def work() -> None:
        inside.set()
        image.run_batch(x, backend="portable")  # hundreds of milliseconds in one call of C
        done.set()

    thread = threading.Thread(target=work)
    sys.setswitchinterval(1e-4)
    try:
        thread.start()
        inside.wait()
        steps = 0
        while not done.is_set():
            steps += 1
            time.sleep(0.001)
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert steps >= 20


def test_pool_survives_a_fork(image):
    """A child process has none of its parent's threads, and makes its own."""
    code = """
import os, sys
sys.path.insert(0, "tests")
import numpy as np, pyhtpw
from pyhtpw.verify import sample_windows
image = pyhtpw.Image.open("results/mitdb-first.htpw")
x = sample_windows(image, 40)
expected = image.run_batch(x, threads=3)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(image.run_batch(x, threads=3), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, cwd=ROOT, timeout=60)


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
