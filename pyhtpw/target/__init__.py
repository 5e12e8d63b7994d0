"""The third telling: `csrc/` cross-compiled for Cortex-M and called from Python under emulation.

`toolchain` compiles and measures, `emulator` runs functions of the result, `model` runs an image with them; `worker` is the
process in which the emulator lives. Nothing here is needed to train, pack or run an image on the host.
"""

from pyhtpw.target.emulator import EmulationError, Emulator

__all__ = ["EmulationError", "Emulator"]
