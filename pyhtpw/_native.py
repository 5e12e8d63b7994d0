"""The C library, one to one: the cffi module, error codes as exceptions, and checked buffers. It does no thinking."""

from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError, HtpwError, ImageError

try:
    from pyhtpw._htpw import ffi as ffi
    from pyhtpw._htpw import lib as lib  # "as": for the modules that import it from here
except ImportError as error:  # pragma: no cover - only on a checkout that was never built
    raise HtpwError(f"the C library is not built ({error}): run 'make setup', or 'pip install -e .'") from error


def _error_classes() -> dict[int, type[ImageError]]:
    """One exception class per row of HTPW_ERRORS in htpw.h, so that Python can't drift from C."""
    classes, i = {}, 0
    while code := lib.htpw_error_code(i):
        name = ffi.string(lib.htpw_error_name(code)).decode()
        title = "".join(word.capitalize() for word in name.split("_"))
        classes[code] = type(f"Image{title}Error", (ImageError,), {"__doc__": text(code), "__module__": "pyhtpw.errors"})
        i += 1
    return classes


def text(code: int) -> str:
    """The library's text for an error code."""
    return ffi.string(lib.htpw_error_text(code)).decode()


ERRORS = _error_classes()


def check(code: int, what: str) -> int:
    """Returns a non-negative `code`; raises the exception of a negative one, its message beginning with `what`."""
    if code < 0:
        row = lib.HTPW_ERR_LEFT_OUT if code <= lib.HTPW_LEFT_OUT_FIRST else code  # of a part, which the text names
        raise ERRORS.get(row, ImageError)(f"{what}: {text(code)}", code)
    return code


def _backend_ids() -> dict[str, int]:
    """Name -> id of every backend of HTPW_BACKENDS in htpw.h, whether or not it runs here."""
    ids, i = {}, 1
    while (name := lib.htpw_backend_name(i)) != ffi.NULL:
        ids[ffi.string(name).decode()] = i
        i += 1
    return ids


BACKENDS = _backend_ids()
BEST = 0  # HTPW_BACKEND_BEST


def backend_id(name: str | None) -> int:
    """Id of a backend by name; None or "best" is the fastest that runs. Raises ConfigError for an unknown name."""
    if name in (None, "best"):
        return BEST
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}: use one of best, {', '.join(BACKENDS)}")
    return BACKENDS[name]


def backend_name(name: str | None = None) -> str:
    """Name of the backend that `name` stands for: of the best one for None."""
    return ffi.string(lib.htpw_backend_name(backend_id(name))).decode()


def available_backends() -> list[str]:
    """Names of the backends that this build and this CPU have, portable first."""
    return [name for name, i in BACKENDS.items() if lib.htpw_backend_is_available(i)]


def version() -> str:
    """Version of the C library."""
    return ffi.string(lib.htpw_version()).decode()


def int8_pointer(array: np.ndarray) -> Any:
    """A C pointer to an int8 or uint8 C-contiguous array; it keeps the array alive. Never casts or copies."""
    if array.dtype not in (np.int8, np.uint8) or not array.flags.c_contiguous:
        raise TypeError(f"need a C-contiguous int8 array, got {array.dtype} with strides {array.strides}")
    return ffi.from_buffer("int8_t *", array)


def aligned(size: int) -> np.ndarray:
    """A zeroed uint8 buffer of at least one byte whose address is a multiple of 16."""
    raw = np.zeros(max(size, 1) + 16, np.uint8)
    start = -raw.ctypes.data % 16
    return raw[start : start + max(size, 1)]
