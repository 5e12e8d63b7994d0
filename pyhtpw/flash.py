"""A flash made of RAM (csrc/ports/htpw_fake_flash.h): kernel stores and slots of code packs, with power cuts, on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ConfigError

if TYPE_CHECKING:
    from pyhtpw.model import Image

NO_CUT = 0xFFFFFFFF


class Flash:
    """A region of flash that enforces erase and program rules.

    Parameters
    ----------
    size : int
        Bytes, a multiple of `erase`.
    page : int
        Bytes programmed at once, a multiple of 4; each page once between two erasures.
    erase : int
        Bytes erased at once, to 0xFF; a multiple of `page`.

    Attributes
    ----------
    memory : uint8 (size,)
        What it holds; begins erased.
    """

    def __init__(self, size: int, page: int = 256, erase: int = 4096) -> None:
        if page < 4 or page % 4 or erase < page or erase % page or size < erase or size % erase:
            raise ConfigError(f"a flash of {size} bytes with pages of {page} and erase blocks of {erase} can't be: each "
                              "must be a whole number of the next smaller one, and a page a multiple of 4")
        self.memory = _native.aligned(size)
        self.memory[:] = 0xFF
        self._page = _native.aligned(page)
        self._fake = ffi.new("struct htpw_fake_flash *")
        self.c = ffi.new("struct htpw_flash *")
        pointers = [ffi.cast("uint8_t *", a.ctypes.data) for a in (self.memory, self._page)]
        lib.htpw_fake_flash_open(self._fake, pointers[0], size, page, erase, pointers[1], self.c)

    def power(self, cut_at: int | None = None) -> None:
        """Power on; with `cut_at`, the power fails half-way through that operation from now (0 is the next)."""
        lib.htpw_fake_flash_power(self._fake, NO_CUT if cut_at is None else cut_at)

    @property
    def operations(self) -> int:
        """Erasures and programmings begun since `power`."""
        return self._fake.operations

    @property
    def violations(self) -> int:
        """Operations refused because they break a rule of flash; a right driver makes none."""
        return self._fake.violations

    @property
    def is_off(self) -> bool:
        """Whether the power has failed."""
        return bool(self._fake.is_off)

    def store_codes(self, image: Image, pack: bytes) -> None:
        """Writes a code pack to the slot that does not hold the newest valid one (htpw_codes_store)."""
        _native.check(lib.htpw_codes_store(image._model, self.c, ffi.from_buffer(pack), len(pack)), f"{image.name}: code pack")

    def boot_codes(self, image: Image) -> None:
        """Applies the newest valid pack to `image`; contexts that were bound to it must be bound again (htpw_codes_boot)."""
        _native.check(lib.htpw_codes_boot(image._model, self.c), f"{image.name}: slots of code packs")
        image._flash = self  # the pack is read in place
        image._forget_contexts()

    def rollback_codes(self, image: Image) -> None:
        """Erases the newest valid pack, so that the one before is applied next (htpw_codes_rollback)."""
        _native.check(lib.htpw_codes_rollback(image._model, self.c), f"{image.name}: slots of code packs")
