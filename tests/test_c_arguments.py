"""What every function of htpw.h does with arguments that are missing or of the wrong size: an error code, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import random_images

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.image import write

NULL = ffi.NULL
BOOT, LAZY, STREAMED, INSTALLED = range(4)


def name(code: int) -> str:
    """HTPW_ERR_..., without the prefix."""
    return ffi.string(lib.htpw_error_name(code)).decode()


def pointer(array: np.ndarray, offset: int = 0):
    """Its address as a void pointer."""
    return ffi.cast("void *", array.ctypes.data + offset)


class Bound:
    """The example image, opened, with memory as planned."""

    def __init__(self) -> None:
        data = write(random_images.example())
        self.image = _native.aligned(len(data))
        self.image[:] = bytearray(data)
        self.model, self.plan, self.context = (ffi.new(f"struct htpw_{what} *") for what in ("model", "plan", "context"))
        assert lib.htpw_model_open(self.model, pointer(self.image), len(data)) == 0
        assert lib.htpw_plan_memory(self.model, 1, self.plan) == 0
        self.arena = _native.aligned(max(self.plan.arena_bytes, self.plan.streamed_arena_bytes) + 4)
        self.cache = _native.aligned(self.plan.cache_bytes + 4)
        self.x, self.y = np.zeros(self.plan.input_bytes, np.int8), np.zeros(self.plan.output_bytes, np.int8)

    def bind(self, **changes) -> str:
        """htpw_bind with some arguments exchanged."""
        defaults = {
            "context": self.context, "model": self.model, "backend": 1, "arena": pointer(self.arena), "arena_bytes": self.plan.arena_bytes,
            "cache": pointer(self.cache), "cache_bytes": self.plan.cache_bytes, "schedule": BOOT,
        }  # fmt: skip
        return name(lib.htpw_bind(*(defaults | changes).values()))


@pytest.fixture
def bound() -> Bound:
    return Bound()


def test_open(bound):
    model, data = ffi.new("struct htpw_model *"), pointer(bound.image)
    assert name(lib.htpw_model_open(NULL, data, bound.image.size)) == "ARGUMENT"
    assert name(lib.htpw_model_open(model, NULL, bound.image.size)) == "ARGUMENT"
    shifted = _native.aligned(bound.image.size + 4)
    assert name(lib.htpw_model_open(model, pointer(shifted, 2), bound.image.size)) == "ALIGNMENT"
    assert name(lib.htpw_model_open(model, data, 0)) == "TRUNCATED"


def test_plan(bound):
    closed = ffi.new("struct htpw_model *")
    assert name(lib.htpw_plan_memory(NULL, 1, bound.plan)) == "ARGUMENT"
    assert name(lib.htpw_plan_memory(bound.model, 1, NULL)) == "ARGUMENT"
    assert name(lib.htpw_plan_memory(closed, 1, bound.plan)) == "ARGUMENT"
    for backend in (-1, len(_native.BACKENDS) + 1, 1 << 20):
        assert name(lib.htpw_plan_memory(bound.model, backend, bound.plan)) == "BACKEND"
    for backend in range(len(_native.BACKENDS) + 1):  # also those of other machines
        assert lib.htpw_plan_memory(bound.model, backend, bound.plan) == 0
        assert bound.plan.streamed_arena_bytes >= bound.plan.installed_arena_bytes


def test_bind(bound):
    assert bound.bind() == "OK"
    assert bound.bind(schedule=LAZY) == "OK"
    for what in ("context", "model", "arena", "cache"):
        assert bound.bind(**{what: NULL}) == "ARGUMENT"
    for schedule in (STREAMED, INSTALLED, -1, 4):
        assert bound.bind(schedule=schedule) == "ARGUMENT"
    assert bound.bind(arena=pointer(bound.arena, 1)) == "ALIGNMENT"
    assert bound.bind(cache=pointer(bound.cache, 2)) == "ALIGNMENT"
    assert bound.bind(arena_bytes=bound.plan.arena_bytes - 1) == "ARENA"
    assert bound.bind(cache_bytes=bound.plan.cache_bytes - 1) == "CACHE"
    assert bound.bind(backend=-1) == "BACKEND"
    elsewhere = [i for i in _native.BACKENDS.values() if not lib.htpw_backend_is_available(i)]
    assert elsewhere, "no machine has all backends"
    for backend in elsewhere:
        assert bound.bind(backend=backend) == "BACKEND"


def test_bind_without_a_cache():
    """An image whose kernels all run as they are stored needs none."""
    from reference_images import image, stored_network

    bound = Bound()
    data = image(stored_network())
    bound.image = _native.aligned(len(data))
    bound.image[:] = bytearray(data)
    assert lib.htpw_model_open(bound.model, pointer(bound.image), len(data)) == 0
    assert lib.htpw_plan_memory(bound.model, 1, bound.plan) == 0
    assert bound.plan.cache_bytes == 0
    assert bound.bind(cache=NULL) == "OK"
    x, y = np.array([5, -7, 100], np.int8), np.zeros(2, np.int8)
    assert lib.htpw_run(bound.context, _native.int8_pointer(x), 3, _native.int8_pointer(y), 2) == 0
    assert y.tolist() == [2, -7]  # test_reference_image.py has the sums
    assert name(lib.htpw_synth_layer(bound.context, 0)) == "ARGUMENT"


def test_run(bound):
    good = [bound.context, _native.int8_pointer(bound.x), bound.x.size, _native.int8_pointer(bound.y), bound.y.size]
    assert name(lib.htpw_run(*good)) == "ARGUMENT"  # not bound yet
    assert bound.bind() == "OK"
    assert name(lib.htpw_run(*good)) == "OK"
    for at, bad in ((0, NULL), (1, NULL), (3, NULL), (2, bound.x.size - 1), (2, bound.x.size + 1), (4, bound.y.size - 1)):
        assert name(lib.htpw_run(*good[:at], bad, *good[at + 1 :])) == "ARGUMENT"


def test_synth_layer(bound):
    assert name(lib.htpw_synth_layer(NULL, 0)) == "ARGUMENT"
    assert name(lib.htpw_synth_layer(bound.context, 0)) == "ARGUMENT"
    assert bound.bind(schedule=LAZY) == "OK"
    for layer in range(bound.model.cached_count):
        assert lib.htpw_synth_layer(bound.context, layer) == 0
    assert name(lib.htpw_synth_layer(bound.context, bound.model.cached_count)) == "ARGUMENT"


def test_kernel_info_and_read(bound):
    info, out = ffi.new("struct htpw_kernel_info *"), np.zeros(1 << 12, np.int8)
    to = _native.int8_pointer(out)
    assert name(lib.htpw_kernel_info(NULL, 0, info)) == "ARGUMENT"
    assert name(lib.htpw_kernel_info(bound.model, 0, NULL)) == "ARGUMENT"
    assert name(lib.htpw_kernel_info(bound.model, bound.model.cached_count, info)) == "ARGUMENT"
    assert lib.htpw_kernel_info(bound.model, 0, info) == 0
    assert name(lib.htpw_kernel_read(bound.context, 0, to, info.bytes)) == "ARGUMENT"
    assert bound.bind(schedule=LAZY) == "OK"
    assert name(lib.htpw_kernel_read(NULL, 0, to, info.bytes)) == "ARGUMENT"
    assert name(lib.htpw_kernel_read(bound.context, 0, NULL, info.bytes)) == "ARGUMENT"
    assert name(lib.htpw_kernel_read(bound.context, 0, to, info.bytes - 1)) == "ARGUMENT"
    assert name(lib.htpw_kernel_read(bound.context, bound.model.cached_count, to, 1)) == "ARGUMENT"
    assert not out.any()
    assert lib.htpw_kernel_read(bound.context, 0, to, info.bytes) == 0 and out.any()


def test_error_texts():
    assert name(0) == "OK" and name(-1000) == "UNKNOWN"
    assert _native.text(0) == "ok" and _native.text(-1000) == "unknown error code"
    codes = [lib.htpw_error_code(i) for i in range(100)]
    known = codes[: codes.index(0)]
    assert len(set(known)) == len(known) == len(_native.ERRORS) and not any(codes[len(known) :])
    for code in known:
        assert name(code).isupper() and len(_native.text(code)) > 10


def test_backends():
    assert lib.htpw_backend_name(-1) == NULL and lib.htpw_backend_name(1 << 20) == NULL
    assert ffi.string(lib.htpw_backend_name(0)).decode() in _native.available_backends()
    assert lib.htpw_backend_is_available(0) and lib.htpw_backend_is_available(1)
    for backend in (-1, len(_native.BACKENDS) + 1):
        assert not lib.htpw_backend_is_available(backend)
    assert _native.version().count(".") == 2
    assert lib.htpw_sizeof_model() == ffi.sizeof("struct htpw_model")
    assert lib.htpw_sizeof_context() == ffi.sizeof("struct htpw_context")
