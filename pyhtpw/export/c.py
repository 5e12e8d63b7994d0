"""An image as a pair of C files: a constant array, its memory needs as constants, and the parts of the library that it needs.

The header is also the configuration of a library built for this image alone: compiled with -DHTPW_CONFIG='"model.h"' it leaves out
every operator, head and feature that the image does without (csrc/htpw_config.h).
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ConfigError
from pyhtpw.image.writer import save
from pyhtpw.model import Image

FAST = ("FUSED", "UNROLL")  # parts that are there for speed alone
CODE = ("fast", "compact", "small")  # the library's code: all of FAST; none; portable kernels with short loops too
MCU = ("portable", "thumb", "armv7em_dsp", "armv81m_mve")  # one of them is the best of any microcontroller
COLUMNS = 20  # bytes of the image in a line


def parts(image: Image) -> dict[str, bool]:
    """Name behind HTPW_WITH_ -> whether the image needs it, for every part that a build may leave out."""
    found: dict[str, bool] = {}
    while (name := lib.htpw_part_name(len(found))) != ffi.NULL:
        needs = _native.check(lib.htpw_model_needs(image._model, len(found)), image.name)
        found[ffi.string(name).decode()] = bool(needs)
    return found


def switches(image: Image, keep: Collection[str] = (), code: str = "fast") -> dict[str, bool]:
    """The configuration of a library for an image: what it needs, what is to be kept, and what makes it fast.

    Parameters
    ----------
    keep : collection of str
        Parts to have although the image works without: PACKS to apply code packs, HOOK for htpw_run_partial and the hook, LAZY for
        that schedule, or any other.
    code : str
        One of `CODE`: how much code to spend on speed.

    Raises
    ------
    ConfigError
        If `keep` names what is no part, or `code` is none of the three.
    """
    if code not in CODE:
        raise ConfigError(f"unknown code {code!r}: use one of {', '.join(CODE)}")
    needed = parts(image)
    if unknown := sorted(set(keep) - set(needed)):
        raise ConfigError(f"unknown part {unknown[0]!r} of the library: use one of {', '.join(needed)}")
    return {name: needs or name in keep or (name in FAST and code == "fast") for name, needs in needed.items()}


def macros(image: Image, keep: Collection[str] = (), code: str = "fast") -> tuple[str, ...]:
    """The configuration as macros NAME=value, as compilers and `pyhtpw.target.toolchain.build` take them."""
    chosen = tuple(f"HTPW_WITH_{part}={int(on)}" for part, on in switches(image, keep, code).items())
    return chosen + (("HTPW_CONFIG_SMALL=1",) if code == "small" else ())


@dataclass(frozen=True)
class Pair:
    """Text of the two files, and the prefix of their names."""

    name: str
    header: str
    source: str


def identifier(text: str) -> str:
    """A C identifier of a file's name. Raises ConfigError if nothing of it is left."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower()
    if not name:
        raise ConfigError(f"{text!r} has no letter or digit to name the C array with: choose another -o")
    return f"model_{name}" if name[0].isdigit() else name


def _sizes(image: Image, prefix: str) -> str:
    """Memory needs as macros, for each backend, and what does for the best backend of any microcontroller."""
    plans = {name: image.plan(name) for name in _native.BACKENDS}
    lines = []
    for what in ("arena", "cache", "streamed_arena", "installed_arena"):
        most = max(getattr(plans[name], what) for name in MCU)
        lines.append(f"#define {prefix}_{what.upper()}_BYTES {most}")
        lines += [f"#define {prefix}_{what.upper()}_BYTES_{name.upper()} {getattr(plan, what)}" for name, plan in plans.items()]
    return "\n".join(lines)


HEADER = """\
/* {name}.h - an image for the HTPW library, written by pyhtpw {version}. `{name}_example` in {name}.c shows how to run it.
 *
 * Compile the library with -DHTPW_CONFIG='"{name}.h"' to leave out what this image does without. */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_IMAGE_BYTES {bytes}
#define {upper}_INPUT_BYTES {input} /* int8 (H, W, C) = ({h}, {w}, {c}), zero point {zero_point} */
#define {upper}_OUTPUT_BYTES {output} /* int8 logits */

/* Memory with each backend, 4-byte aligned; the first of each is enough for the best backend of any microcontroller. The cache is for
 * kernels in SRAM; with the schedules in flash it is the room for kernels there. */
{sizes}

extern const uint8_t {name}_image[{upper}_IMAGE_BYTES]; /* 16-byte aligned */

/* With -D{upper}_EXAMPLE: runs one window. Returns 0 or an error code. */
int {name}_example(const int8_t *window, int8_t *logits);

#ifdef __cplusplus
}}
#endif

/* The parts of the library that the image needs{kept}: csrc/htpw_config.h. */
{switches}

#endif
"""

SOURCE = """\
/* {name}.c - see {name}.h. Written by pyhtpw {version}. */
#include "{name}.h"

#if defined(__GNUC__) || defined(__ICCARM__)
#define {upper}_ALIGNED __attribute__((aligned(16)))
#elif defined(_MSC_VER)
#define {upper}_ALIGNED __declspec(align(16))
#else
#define {upper}_ALIGNED _Alignas(16)
#endif

{upper}_ALIGNED const uint8_t {name}_image[{upper}_IMAGE_BYTES] = {{
{array}
}};

#ifdef {upper}_EXAMPLE
#include "htpw.h"

int {name}_example(const int8_t *window, int8_t *logits) {{
    static uint32_t arena[{upper}_ARENA_BYTES / 4], cache[{upper}_CACHE_BYTES / 4 + 1];
    static struct htpw_model model;
    static struct htpw_context context;
    int error = htpw_model_open(&model, {name}_image, {upper}_IMAGE_BYTES);
    if (error == 0) {{
        error = htpw_bind(&context, &model, HTPW_BACKEND_BEST, arena, sizeof arena, cache, sizeof cache, HTPW_BOOT);
    }}
    return error != 0 ? error : htpw_run(&context, window, {upper}_INPUT_BYTES, logits, {upper}_OUTPUT_BYTES);
}}
#endif
"""


def pair(image: Image, name: str, keep: Collection[str] = (), code: str = "fast") -> Pair:
    """The two files of an image; `name` is a C identifier. Parameters and errors as those of `switches`."""
    from pyhtpw import __version__

    upper, first = name.upper(), image.parsed.input
    lines = ["#define " + macro.replace("=", " ") for macro in macros(image, keep, code)]
    data = image.data
    rows = [", ".join(map(str, data[at : at + COLUMNS])) for at in range(0, len(data), COLUMNS)]
    shared = {"name": name, "upper": upper, "version": __version__}
    header = HEADER.format(
        **shared, bytes=len(data), input=image.plan().input, output=image.plan().output, h=first.h, w=first.w, c=first.c,
        zero_point=first.zero_point, sizes=_sizes(image, upper), switches="\n".join(lines),
        kept=f", and {', '.join(sorted(keep))}" if keep else "",
    )
    return Pair(name, header, SOURCE.format(**shared, array="\n".join(f"    {row}," for row in rows)))


def export_c(image: Image, path: str | os.PathLike, keep: Collection[str] = (), code: str = "fast") -> tuple[Path, Path]:
    """Writes `path`, a .c file, and the .h file beside it; returns both. The array is named after the file.

    Raises
    ------
    ConfigError
        If the name does not end in .c or is no C identifier, `keep` names what is no part, or `code` is none of `CODE`.
    ImageError
        If a file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".c":
        raise ConfigError(f"{path}: the C file's name must end in .c")
    name = identifier(path.stem)
    if name != path.stem:
        raise ConfigError(f"{path}: the array is named after the file: use {path.with_name(name + '.c')}")
    files = pair(image, name, keep, code)
    header = path.with_suffix(".h")
    save(files.source.encode(), path)
    save(files.header.encode(), header)
    return path, header
