"""How a checked kernel call reaches a machine: `Host` calls the C library here, `pyhtpw.target.kernels.Target` on an emulated core.

A call is the kernel's name and neutral arguments in the order of the C function: integers, numpy arrays (pointers), None (NULL) and
`Struct`s. The output is the last argument. `lower` turns it into a call of a backend's kernel table, if the backend has that kernel.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import KernelError

PORTABLE = _native.BACKENDS["portable"]
# kernels that a backend may replace: kernel -> field of struct htpw_backend; all others are the portable ones everywhere
FIELDS = {
    "conv_s8": "conv",
    "depthwise_s8": "depthwise",
    "conv1x1_s8": "conv1x1",
    "fully_connected_s8": "conv1x1",
    "conv1x1_cached_s8": "packed",
    "conv1x1_s4": "conv1x1_s4",
    "fully_connected_s4": "conv1x1_s4",
    "add_s8": "add",
    "avgpool_s8": "avgpool",
    "maxpool_s8": "maxpool",
}
_SCRATCH = ("conv", "depthwise", "conv1x1", "packed", "conv1x1_s4")
# struct htpw_window: positions of the fields that the size of scratch depends on
_IN_C, _OUT_C, _K_H, _K_W, _GROUPS = 3, 6, 7, 8, 15


class Struct(NamedTuple):
    """A C struct by name and the values of its fields in order: integers, and arrays for pointers."""

    name: str
    fields: tuple[Any, ...]


class Executor(Protocol):
    """What runs kernels: `run` a call, `scalars` a function of integers over columns of them."""

    def run(self, kernel: str, *args: Any) -> None: ...

    def scalars(self, function: str, *columns: list[int]) -> list[int]: ...


def aligned(size: int) -> np.ndarray:
    """Memory of `size` bytes that C may read words from."""
    return _native.aligned(size)[:size]


def cached_layout(backend: int, w: np.ndarray) -> np.ndarray:
    """Row-major int8 weights (Cout, Cin) in the layout in which `backend` caches generated kernels (htpw_layout_put)."""
    layout = ffi.addressof(lib.htpw_backend_rule(backend), "layout")
    packed = aligned(lib.htpw_layout_bytes(layout, *w.shape))
    at = ffi.cast("void *", packed.ctypes.data)
    lib.htpw_layout_clear(layout, *w.shape, at)
    lib.htpw_layout_put(layout, w.shape[1], 0, w.size, _native.int8_pointer(np.ascontiguousarray(w)), at)
    lib.htpw_layout_finish(layout, *w.shape, at)
    return packed


def _in_domain(kernel: str, args: list[Any]) -> bool:
    """Whether a call keeps docs/SPEC.md section 7, which is all that a backend other than the portable one answers for.

    An image is refused if it does not; a kernel called by hand, with a bias near 2^31 say, then runs on the portable kernel.
    """
    if kernel == "add_s8":
        p = args[1].fields
        return 16 <= p[6] <= 22 and max(p[2], p[5], p[9]) <= 0
    if kernel in ("avgpool_s8", "maxpool_s8"):
        return True
    if kernel in ("conv_s8", "depthwise_s8"):
        g, q, bias = args[0].fields, args[1], args[5]
        products = g[_K_H] * g[_K_W] * (g[_IN_C] // g[_GROUPS] if kernel == "conv_s8" else 1)
    else:
        products, q, bias = args[1], args[3], args[-2]
    largest = 0 if bias is None else int(np.abs(bias.astype(np.int64)).max())
    return (products * 255 * 128 + largest) << max(int(q.fields[1].max()), 0) < 1 << 30


def portable_symbol(kernel: str) -> str:
    """The C function of the portable kernel; a cached kernel is row-major there, so it is the ordinary one."""
    base = kernel.replace("_cached", "")
    return f"htpw_{base}" if base.startswith("bits_") else f"htpw_{base}_ref"


def lower(kernel: str, arguments: tuple[Any, ...], backend: int) -> tuple[str | None, int, tuple[Any, ...]]:
    """(field of the kernel table, backend, its arguments), or (None, portable, arguments of the portable kernel).

    Scratch is sized by the backend's rule, which is known on every machine.
    """
    args = list(arguments)
    if kernel not in FIELDS or (kernel == "fully_connected_s8" and args[5] != 0) or not _in_domain(kernel, args):
        backend = PORTABLE
    if backend == PORTABLE:
        return None, PORTABLE, tuple(args)
    if kernel == "conv1x1_cached_s8":
        args[6] = cached_layout(backend, args[6])  # rows, in_c, out_c, q, in_offset, x, w, bias, y
    elif kernel == "fully_connected_s8":
        del args[5]  # the filter offset, 0
    return FIELDS[kernel], backend, tuple(_with_scratch(FIELDS[kernel], args, backend))


def _with_scratch(field: str, args: list[Any], backend: int) -> list[Any]:
    if field not in _SCRATCH:
        return args
    rule = lib.htpw_backend_rule(backend)
    if field in ("conv1x1", "packed", "conv1x1_s4"):
        size = lib.htpw_backend_scratch(rule, args[1])
    else:
        g = args[0].fields
        taps = g[_K_H] * g[_K_W]
        if field == "depthwise":
            size = lib.htpw_backend_depthwise_scratch(rule, taps, g[_OUT_C])
        else:
            size = lib.htpw_backend_scratch(rule, taps * (g[_IN_C] // g[_GROUPS]))
    return [*args[:-1], aligned(size), args[-1]]


class Host:
    """The C library on this machine, with the backend of a name (None: the best)."""

    def __init__(self, backend: str | None = None) -> None:
        names = _native.available_backends()
        if backend is not None and backend not in names:
            raise KernelError(f"unknown backend {backend!r}; this machine has {', '.join(names)}")
        self.backend = _native.BACKENDS[_native.backend_name(backend)]

    def run(self, kernel: str, *args: Any) -> None:
        """Runs a kernel; the last argument receives the output."""
        field, backend, args = lower(kernel, args, self.backend)
        if field is not None:
            function = getattr(lib.htpw_backend_get(backend), field)
        else:
            function = getattr(lib, portable_symbol(kernel))
        kept: list[Any] = []  # cffi structs do not keep what their pointers point to
        function(*(self._value(arg, kept) for arg in args))

    def _value(self, arg: Any, kept: list[Any]) -> Any:
        if arg is None:
            return ffi.NULL
        if isinstance(arg, np.ndarray):
            return ffi.cast("void *", arg.ctypes.data) if arg.size == 0 else ffi.from_buffer(f"{arg.dtype}_t[]", arg)
        if isinstance(arg, Struct):
            kept.extend(self._value(value, kept) for value in arg.fields if isinstance(value, np.ndarray))
            return ffi.new(f"struct {arg.name} *", [self._value(value, kept) for value in arg.fields])
        return arg

    def scalars(self, function: str, *columns: list[int]) -> list[int]:
        """function(a, b, ...) for every row of the columns."""
        return list(map(getattr(lib, function), *columns))


def executor(backend: "str | Executor | None") -> Executor:
    """The executor that `backend=` stands for: a name, None for the best, or an executor itself."""
    if backend is None or isinstance(backend, str):
        return Host(backend)
    if not hasattr(backend, "run"):
        raise KernelError(f"backend must be a name, None or an executor, not {type(backend).__name__}")
    return backend
