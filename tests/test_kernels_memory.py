"""No kernel reads outside its inputs: each array lies against a page that cannot be read.

A stray read ends the process, so the golden vectors run in one of their own (`test_kernels_memory.py BACKEND SIDE`).
Vector code that reads whole registers, or sums of neighbouring rows that are dropped later, show up only here.
"""

import ctypes
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import vectors_io

from pyhtpw import kernels
from pyhtpw.errors import KernelError

PAGE = mmap.PAGESIZE
PROT_NONE = 0


class Guarded:
    """Memory between two unreadable pages."""

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, 1) // PAGE) * PAGE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for page in (start, start + PAGE + self.size):
            if protect(page, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def copy(self, array: np.ndarray, at_end: bool) -> np.ndarray:
        """A copy that begins right behind the first or ends right before the last page."""
        offset = PAGE + (self.size - array.nbytes if at_end else 0)
        copy = np.frombuffer(self.map, array.dtype, array.size, offset).reshape(array.shape)
        copy[...] = array
        return copy


def run(backend: str, side: str) -> int:
    """Runs all golden vectors with guarded inputs; returns the number of cases whose bytes are right."""
    places = [Guarded(1 << 20) for _ in range(5)]
    good = 0
    for kernel in vectors_io.KERNELS:
        for case in vectors_io.cases(kernel):
            name, args, keywords = vectors_io.arguments(case)
            moved = [
                place.copy(np.ascontiguousarray(a), side == "end") if isinstance(a, np.ndarray) else a
                for place, a in zip(places, args, strict=False)
            ]
            try:
                good += getattr(kernels, name)(*moved, backend=backend, **keywords).tobytes() == case.expected.tobytes()
            except KernelError:
                good += case.tier == "wrap"
    return good


def child(*arguments: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=300)


posix = pytest.mark.skipif(os.name != "posix", reason="needs mprotect")


@posix
@pytest.mark.parametrize("side", ("end", "start"))
@pytest.mark.parametrize("backend", kernels.backends())
def test_nothing_is_read_outside_the_inputs(backend: str, side: str) -> None:
    done = child(backend, side)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(1 for kernel in vectors_io.KERNELS for _ in vectors_io.cases(kernel))


@posix
@pytest.mark.parametrize("side", ("end", "start"))
def test_the_guard_pages_work(side: str) -> None:
    """A read one byte outside kills the process, which is what the test above relies on."""
    assert child("touch", side).returncode < 0


def touch(side: str) -> None:
    place = Guarded(1)
    address = place.copy(np.zeros(8, np.int8), side == "end").ctypes.data
    ctypes.string_at(address + 8 if side == "end" else address - 1, 1)


if __name__ == "__main__":
    if sys.argv[1] == "touch":
        touch(sys.argv[2])
    else:
        print(run(*sys.argv[1:]))
