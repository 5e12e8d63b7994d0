"""Neural networks whose weights are generated at boot, equal to the bit on every machine.

`Image` is an image file, opened: what it holds (`layers`, `bill`, `plan`), its kernels (`synthesise`), its logits (`run`,
`run_batch`) and how it differs from another one (`diff`). `pack` makes one of an integer model. `verify` proves that all tellings
agree, `kernels` are the integer kernels on numpy arrays, `target` is the emulated microcontroller, `errors` what is raised.

>>> import pyhtpw
>>> image = pyhtpw.Image.open("model.htpw")            # doctest: +SKIP
>>> logits = image.run_batch(image.quantise(windows))  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Diff", "Image", "Layer", "Plan", "__version__", "errors", "kernels", "pack", "target", "verify"]

if TYPE_CHECKING:
    from pyhtpw import errors, kernels, target, verify
    from pyhtpw.compare import Diff
    from pyhtpw.model import Image, Layer, Plan, pack

_MODULES = {"Diff": "compare", "Image": "model", "Layer": "model", "Plan": "model", "pack": "model"}


def __getattr__(name: str) -> Any:
    """Loads the public names when they are first used, so that `import pyhtpw` costs next to nothing."""
    if name in _MODULES:
        value = getattr(importlib.import_module(f"pyhtpw.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"pyhtpw.{name}")
    raise AttributeError(f"module 'pyhtpw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
