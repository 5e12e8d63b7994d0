"""Builds `pyhtpw._htpw`, the cffi extension around `csrc/`.

The declarations are not copied by hand: the C preprocessor expands the headers themselves (with HTPW_CDEF, which leaves
out the system includes), so a binding can't drift from the library. Run by setuptools (`cffi_modules` in setup.py).
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
HEADERS = ("htpw.h", "kernels/htpw_kernels.h", "backends/htpw_backend.h", "ports/htpw_fake_flash.h")


def sources() -> list[str]:
    """All C files of the library, from the one list that every kind of package takes them from, relative to the project root."""
    return [f"csrc/{name}" for name in (CSRC / "sources.txt").read_text().split()]


def compiler() -> list[str]:
    """The C compiler that setuptools would use, as an argument list."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]


def declarations() -> str:
    """The preprocessed public headers, ready for `FFI.cdef`."""
    command = [*compiler(), "-E", "-P", "-DHTPW_CDEF", f"-I{CSRC}", "-xc", "-"]
    unit = "".join(f'#include "{header}"\n' for header in HEADERS)
    try:
        return subprocess.run(command, input=unit, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        sys.exit(f"pyhtpw: no C compiler ({command[0]}): install one (for example 'apt-get install gcc') or set CC")
    except subprocess.CalledProcessError as error:
        sys.exit(f"pyhtpw: {' '.join(command)} failed: {error.stderr.strip()}")


# Only here, for Python's sake. A batch is one call for each thread, for which the GIL is released once: the threads take `most`
# windows at a time from those that are left, `next` being the first, so that one that is slower takes fewer.
RUN_MANY = """int pyhtpw_run_many(struct htpw_context *context, void *arena, size_t most, size_t *next, size_t count,
                           const int8_t *x, size_t in, int8_t *y, size_t out)"""
RUN_MANY_BODY = """ {
    int error = 0;
    while (error == 0) {
        const size_t first = PYHTPW_TAKE(next, most);
        if (first >= count) {
            break;
        }
        const size_t windows = count - first < most ? count - first : most;
        error = htpw_run_batch(context, arena, (uint32_t)windows, x + first * in, y + first * out);
    }
    return error;
}
"""
TAKE = """
#ifdef _MSC_VER
#include <intrin.h>
#define PYHTPW_TAKE(next, n) ((size_t)_InterlockedExchangeAdd64((volatile __int64 *)(next), (__int64)(n)))
#else
#define PYHTPW_TAKE(next, n) __atomic_fetch_add((next), (n), __ATOMIC_RELAXED)
#endif
"""

# The user's own CMSIS-NN, if there is one (csrc/backends/cmsis_nn/README.md)
CMSIS_NN = os.environ.get("HTPW_CMSIS_NN_INCLUDE")

FLAGS = shlex.split(os.environ.get("HTPW_CFLAGS", ""))
ffibuilder = FFI()
ffibuilder.cdef(declarations() + RUN_MANY + ";")
ffibuilder.set_source(
    "pyhtpw._htpw",
    "".join(f'#include "{header}"\n' for header in (*HEADERS, "htpw_internal.h")) + f"{TAKE}static {RUN_MANY}{RUN_MANY_BODY}",
    sources=sources(),
    include_dirs=["csrc", *([CMSIS_NN] if CMSIS_NN else [])],
    define_macros=[("HTPW_CONFIG_BATCH", "1"), *([("HTPW_CONFIG_CMSIS_NN", "1")] if CMSIS_NN else [])],
    extra_objects=[os.environ["HTPW_CMSIS_NN_LIBRARY"]] if CMSIS_NN else [],
    depends=["csrc/sources.txt", *sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*.h"))],
    extra_compile_args=["-O3", "-std=c99", "-fno-strict-aliasing", *FLAGS] if os.name == "posix" else [],
)
