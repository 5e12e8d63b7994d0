"""The third telling: `csrc/` cross-compiled for Cortex-M and called from Python under emulation.

`toolchain` compiles and measures, `emulator` runs functions of the result, `model` runs an image with them; `worker` is the
process in which the emulator lives. Nothing here is needed to train, pack or run an image on the host.
"""

from typing import TYPE_CHECKING, Any

from pyhtpw.target import emulator, toolchain
from pyhtpw.target.emulator import EmulationError

if TYPE_CHECKING:
    from pyhtpw.target.board_kernels import BoardEmulator

__all__ = ["EmulationError", "Emulator"]


def Emulator(cpu: str = "cortex-m4", **options: Any) -> "emulator.Emulator | BoardEmulator":  # noqa: N802 - makes one of two classes
    """The library on an emulated core: `pyhtpw.target.emulator.Emulator` for cortex-m0 to cortex-m33, and a QEMU board
    (`pyhtpw.target.board_kernels.BoardEmulator`) for cortex-m55 and cortex-m55-nomve."""
    if toolchain.cpu_named(cpu).unicorn is not None:
        return emulator.Emulator(cpu, **options)
    from pyhtpw.target.board_kernels import BoardEmulator

    return BoardEmulator(cpu, **options)
