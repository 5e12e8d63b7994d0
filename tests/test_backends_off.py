"""Arm programs with their backend switched off (HTPW_CONFIG_NO_...): what runs instead gives the golden bytes too.

The suite runs a part of the vectors; `tests/full_matrix.py` calls `check` with all of them.
"""

import pytest
import vectors_io

from pyhtpw import kernels
from pyhtpw.errors import ConfigError, KernelError, MissingToolError
from pyhtpw.target import Emulator, qemu, toolchain
from pyhtpw.target.board_kernels import BoardTarget, best

# core -> the backend that is left out; these cores have no other, so that the portable kernels run
OFF = {
    "cortex-m0": "THUMB",
    "cortex-m3": "THUMB",
    "cortex-m4": "ARMV7EM_DSP",
    "cortex-m55": "ARMV81M_MVE",
    "cortex-m55-nomve": "ARMV7EM_DSP",
}
PART = 6  # one case in so many


def on_board(defines: tuple[str, ...], cpu: str, cases: list) -> tuple[str, int]:
    """Calls on a QEMU board, in a batch for each routine. Returns the program's backend, and how many calls ran."""
    ran, elf = 0, qemu.build(cpu, compiler="gcc", defines=defines)
    table = best(elf)
    for routine in vectors_io.KERNELS:
        batch, waiting = qemu.Batch(elf), []
        for case in (c for c in cases if c.kernel == routine):
            name, args, keywords = vectors_io.arguments(case)
            board = BoardTarget(batch, table)
            try:
                waiting.append((board, getattr(kernels, name)(*args, **keywords, backend=board), case))
            except KernelError:
                assert case.tier == "wrap", str(case)
        batch.run()
        for board, got, case in waiting:
            board.collect()
            assert got.tobytes() == case.expected.tobytes(), str(case)
        ran += len(waiting)
    return table.name, ran


def emulated(defines: tuple[str, ...], cpu: str, cases: list) -> tuple[str, int]:
    """The same calls under unicorn."""
    ran = 0
    with Emulator(cpu, compiler="gcc", defines=defines) as emulator:
        for case in cases:
            name, args, keywords = vectors_io.arguments(case)
            try:
                got = getattr(emulator.kernels, name)(*args, **keywords)
            except KernelError:
                assert case.tier == "wrap", str(case)
                continue
            assert got.tobytes() == case.expected.tobytes(), str(case)
            ran += 1
        return emulator.kernels.executor.name, ran


def check(cpu: str, part: int = 1) -> int:
    """Every `part`-th golden vector of each routine on a program without its backend; returns how many ran."""
    cases = [case for routine in vectors_io.KERNELS for case in list(vectors_io.cases(routine))[::part]]
    run = emulated if toolchain.CPUS[cpu].unicorn else on_board
    name, ran = run((f"HTPW_CONFIG_NO_{OFF[cpu]}",), cpu, cases)
    assert name == "portable"
    return ran


@pytest.mark.parametrize("cpu", OFF)
def test_golden_vectors(cpu):
    try:
        assert check(cpu, PART) > 1190 / PART * 0.9
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")


def test_a_program_is_kept_by_its_macros():
    try:
        whole, less = (toolchain.build("cortex-m4", defines=macros) for macros in ((), ("HTPW_CONFIG_NO_ARMV7EM_DSP",)))
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    assert whole.path != less.path
    assert "htpw_backend_armv7em_dsp" in whole.symbols and "htpw_backend_armv7em_dsp" not in less.symbols


@pytest.mark.parametrize("macro", ("", "-O0", "A=b c", "A B", "1A"))
def test_what_is_no_macro_is_refused(macro):
    with pytest.raises(ConfigError, match="is not a macro"):
        toolchain.build("cortex-m4", defines=(macro,))
