"""The arithmetic of pyhtpw told slowly, in numpy: start here to understand it.

``kernels`` holds one module per kernel, ``sections`` reads the file, ``image`` the operators,
``heads`` what makes weights from codes; ``synthesis`` puts weights into kernels, ``run`` runs a
model, ``packs`` applies code packs. Nothing here knows the C library or ``pyhtpw``; tests compare
all of them byte by byte.

>>> import numpy as np, reference
>>> model = reference.read(open("model.htpw", "rb").read())      # doctest: +SKIP
>>> reference.run(model, np.zeros((1, *model.input_shape), np.int8))  # doctest: +SKIP
"""

from . import kernels
from .image import ImageError, Model, read
from .packs import PackError, apply_pack
from .run import run, trace

__all__ = ["ImageError", "Model", "PackError", "apply_pack", "kernels", "read", "run", "trace"]
