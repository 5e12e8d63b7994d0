"""LiteRT's reference kernels, where it is installed (extra `litert`)."""

import numpy as np
import pytest


def litert(data: bytes, x: np.ndarray) -> np.ndarray:
    """First output for int8 windows (N, ...), by the BUILTIN_REF resolver in one batch; skips the test without LiteRT."""
    module = pytest.importorskip("ai_edge_litert.interpreter", reason="NOT RUN: LiteRT is missing: pip install 'pyhtpw[litert]'")
    run = module.Interpreter(model_content=data, experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF)
    index = run.get_input_details()[0]["index"]
    run.resize_tensor_input(index, list(x.shape))
    run.allocate_tensors()
    run.set_tensor(index, x)
    run.invoke()
    return run.get_tensor(run.get_output_details()[0]["index"])
