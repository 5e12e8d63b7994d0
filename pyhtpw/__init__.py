"""Neural networks whose weights are generated at boot, equal to the bit on every machine.

>>> import pyhtpw
>>> image = pyhtpw.Image.open("model.htpw")          # doctest: +SKIP
>>> logits = image.run_batch(image.quantise(windows))  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Image", "__version__", "bill", "errors", "kernels"]

if TYPE_CHECKING:
    from pyhtpw import errors, kernels
    from pyhtpw.image import bill
    from pyhtpw.model import Image


def __getattr__(name: str):
    """Loads the public names when they are first used, so that `import pyhtpw` costs next to nothing."""
    import importlib

    if name in ("errors", "kernels"):
        return importlib.import_module(f"pyhtpw.{name}")
    if name == "Image":
        return importlib.import_module("pyhtpw.model").Image
    if name == "bill":
        return importlib.import_module("pyhtpw.image").bill
    raise AttributeError(f"module 'pyhtpw' has no attribute {name!r}")
