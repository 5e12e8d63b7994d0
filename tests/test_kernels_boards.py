"""Golden vectors of every kernel on the Cortex-M55, with and without Helium: the table's kernels and the portable rest, which a
compiler is free to vectorise by itself."""

import pytest
import vectors_io

from pyhtpw import kernels
from pyhtpw.errors import KernelError, MissingToolError
from pyhtpw.target import qemu
from pyhtpw.target.board_kernels import BoardTarget, best


@pytest.fixture(scope="module", params=["cortex-m55", "cortex-m55-nomve"])
def program(request):
    """The library for a core, and the backend that it chooses there."""
    try:
        qemu.find_qemu()
        elf = qemu.build(request.param)
        return elf, best(elf)
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")


@pytest.mark.parametrize("routine", vectors_io.KERNELS)
def test_golden_vectors(program, routine):
    """Equal bytes, or for a case that overflows a typed refusal."""
    elf, table = program
    batch, waiting, refused = qemu.Batch(elf), [], 0
    for case in vectors_io.cases(routine):
        name, args, keywords = vectors_io.arguments(case)
        board = BoardTarget(batch, table)
        try:
            waiting.append((board, getattr(kernels, name)(*args, **keywords, backend=board), case))
        except KernelError:
            assert case.tier == "wrap", str(case)
            refused += 1
    batch.run()
    for board, got, case in waiting:
        board.collect()
        assert got.tobytes() == case.expected.tobytes(), str(case)
    assert len(waiting) >= 40 and refused < 10
