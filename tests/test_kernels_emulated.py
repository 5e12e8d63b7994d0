"""Golden vectors on emulated cores: the Arm build of every kernel against the outputs of the real CMSIS-NN."""

import numpy as np
import pytest
import vectors_io

from pyhtpw.errors import KernelError, MissingToolError
from pyhtpw.target import toolchain
from pyhtpw.target.emulator import Emulator

CPUS = [name for name, cpu in toolchain.CPUS.items() if cpu.unicorn]


@pytest.fixture(scope="module", params=CPUS)
def emulator(request):
    try:
        with Emulator(request.param) as found:
            found.call("htpw_sizeof_model")
            yield found
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")


def test_golden_vectors(emulator):
    """Every case: equal bytes, or for a case that overflows a typed refusal."""
    equal = refused = 0
    for kernel in vectors_io.KERNELS:
        for case in vectors_io.cases(kernel):
            name, args, keywords = vectors_io.arguments(case)
            try:
                got = getattr(emulator.kernels, name)(*args, **keywords)
            except KernelError:
                assert case.tier == "wrap", str(case)
                refused += 1
                continue
            assert got.tobytes() == case.expected.tobytes(), str(case)
            equal += 1
    assert equal > 1190 and refused < 60


def test_cached_kernels_on_every_backend_of_the_program(emulator):
    """Pointwise vectors through the cache layout of each backend that the core has, at an odd address."""
    from pyhtpw._native import BACKENDS

    ran = []
    for backend in BACKENDS:
        try:
            kernels = emulator.kernels_of(backend, shift=3)
        except KernelError:
            continue
        for case in vectors_io.cases("conv_1x1_fast_s8"):
            name, args, keywords = vectors_io.arguments(case)
            if case.tier != "wrap":
                assert kernels.conv1x1_cached_s8(*args, **keywords).tobytes() == case.expected.tobytes(), (backend, str(case))
                assert getattr(kernels, name)(*args, **keywords).tobytes() == case.expected.tobytes(), (backend, str(case))
        ran.append(backend)
    assert "portable" in ran


def test_requantise_vectors(emulator):
    """The scalar rule, on a spread of the scalar vectors."""
    vectors = {name: array[::13] for name, array in vectors_io.requantise_vectors().items() if len(array) > 10000}
    got = emulator.kernels.requantise(*(vectors[name].astype(np.int32) for name in ("value", "multiplier", "shift")))
    assert np.array_equal(got, vectors["result_double"])
