"""Golden vectors of CMSIS-NN for all tellings: numpy, C, and the C built for Arm.

``cases(kernel)`` yields the stored cases of one CMSIS-NN routine; ``arguments(case)`` maps a case
onto the common Python signature of the kernels, so that one test drives any module that has
functions of those names::

    for case in cases("convolve_s8"):
        name, args, kwargs = arguments(case)
        assert getattr(module, name)(*args, **kwargs).tobytes() == case.expected.tobytes()

The compact copy beside this file is read by default. With the environment variable HTPW_VECTORS
set to the folder of the original vectors (``manifest.json`` and one ``.npz`` per routine), those
are read instead. Where the copy comes from is told in ``vectors/cmsis-nn/PROVENANCE.md``.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COMPACT = Path(__file__).parent / "vectors" / "cmsis-nn"
ENVIRONMENT = "HTPW_VECTORS"

TIERS = ("core", "core_mve_differs", "wrap")
ABSENT = -1  # in a shape of the compact copy: the case has no such array (a NULL bias)

# CMSIS-NN routine of the vectors -> function of the common signature. The strided pointwise
# routine goes to the general convolution: the specification's conv1x1 has stride 1.
FUNCTIONS = {
    "conv_1x1_fast_s8": "conv1x1_s8",
    "conv_1x1_s8": "conv1x1_s8 or conv_s8",
    "conv_1xn_s8": "conv_s8",
    "convolve_s8": "conv_s8",
    "conv_wrapper_s8": "conv_s8",
    "conv_1x1_fast_s4": "conv1x1_s4",
    "conv_1x1_s4": "conv1x1_s4 or conv_s4",
    "conv_1xn_s4": "conv_s4",
    "convolve_s4": "conv_s4",
    "conv_wrapper_s4": "conv_s4",
    "dw_wrapper_s8": "depthwise_s8",
    "dw_wrapper_s4": "depthwise_s4",
    "fc_s8": "fully_connected_s8",
    "fc_pc_s8": "fully_connected_s8",
    "fc_s4": "fully_connected_s4",
    "vec_mat_s8": "fully_connected_s8",
    "avgpool_s8": "avgpool_s8",
    "maxpool_s8": "maxpool_s8",
    "add_s8": "add_s8",
    "mul_s8": "mul_s8",
    "softmax_s8": "softmax_s8",
    "relu_q7": "relu_s8",
    "relu6_s8": "relu6_s8",
}
KERNELS = tuple(FUNCTIONS)


@dataclass(frozen=True, eq=False)
class Case:
    """One run of a CMSIS-NN routine.

    ``params`` are CMSIS-NN's scalars by the names of the original manifest, ``arrays`` its
    operands and ``output``. ``tier`` is ``core`` (must match), ``core_mve_differs`` (must match;
    only CMSIS-NN's own Helium build deviates) or ``wrap`` (some step leaves int32, or a shift is
    -31: the output is that of two's complement; a typed refusal is as good).
    """

    kernel: str
    id: int
    tier: str
    params: dict[str, int]
    arrays: dict[str, np.ndarray]

    def __str__(self) -> str:
        return f"{self.kernel}[{self.id}, {self.tier}]"

    @property
    def expected(self) -> np.ndarray:
        """The output in the shape that the function of ``arguments`` returns, int8."""
        output = self.arrays["output"]
        if self.kernel == "vec_mat_s8":
            # Only every address_offset-th byte is written; the rest keeps the caller's filling.
            return output[:: self.params["address_offset"]][None]
        if self.kernel.startswith("fc_"):
            return output.reshape(output.shape[0], -1)
        return output


def cases(kernel: str) -> Iterator[Case]:
    """Yield the cases of one routine, in the order of their ids.

    Parameters
    ----------
    kernel : str
        One of ``KERNELS``.

    Raises
    ------
    KeyError
        An unknown routine.
    """
    folder = os.environ.get(ENVIRONMENT)
    yield from full_cases(Path(folder), kernel) if folder else _compact_cases(kernel)


def full_cases(folder: Path, kernel: str) -> Iterator[Case]:
    """Yield the cases of one routine from the folder of the original vectors.

    Arrays that no test of this project reads are left out: the output of the single-rounding
    build, and unpacked int4 weights, of which the packed form is the operand.
    """
    entry = _json(folder / "manifest.json")["kernels"][kernel]
    with np.load(folder / entry["file"], allow_pickle=False) as store:
        for case in entry["cases"]:
            dropped = {"output_sr"} | ({"weights"} if "weights_packed" in case["keys"] else set())
            arrays = {field: store[f"case_{case['id']:03d}_{field}"] for field in case["keys"] if field not in dropped}
            yield Case(kernel, case["id"], case["tier"], case["params"], arrays)


def _compact_cases(kernel: str) -> Iterator[Case]:
    entry = _json(COMPACT / "cases.json")["kernels"][kernel]
    fields = entry["fields"]
    with np.load(COMPACT / "cases.npz", allow_pickle=False) as store:
        flat = {field: store[f"{kernel}.{field}"] for field in fields}
        shapes = {field: store[f"{kernel}.{field}.shape"] for field in fields}
    position = dict.fromkeys(fields, 0)
    for index, row in enumerate(entry["cases"]):
        number, tier, *values = row
        arrays = {}
        for field in fields:
            shape = tuple(int(n) for n in shapes[field][index])
            if shape[0] == ABSENT:
                continue
            end = position[field] + int(np.prod(shape, dtype=np.int64))
            arrays[field] = flat[field][position[field] : end].reshape(shape)
            position[field] = end
        params = {**entry["constant"], **dict(zip(entry["names"], values, strict=True))}
        yield Case(kernel, number, TIERS[tier], params, arrays)


@functools.cache
def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def requantise_vectors() -> dict[str, np.ndarray]:
    """Return the scalar vectors as stacked int32 arrays (and one bool array).

    Keys: ``value, multiplier, shift, result_double, overflow_double`` (the result wraps where the
    flag is set), ``dhm_a, dhm_b, dhm_result`` (doubling high multiply, saturating) and
    ``divpow2_value, divpow2_exponent, divpow2_result`` (division by a power of two).
    """
    folder = os.environ.get(ENVIRONMENT)
    path = Path(folder) / "requantize.npz" if folder else COMPACT / "requantise.npz"
    return scalar_vectors(path)


def scalar_vectors(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of ``requantise_vectors`` from one file."""
    names = ("value", "multiplier", "shift", "result_double", "overflow_double")
    names += ("dhm_a", "dhm_b", "dhm_result")
    names += ("divpow2_value", "divpow2_exponent", "divpow2_result")
    with np.load(path, allow_pickle=False) as store:
        return {name: store[name] for name in names}


def arguments(case: Case) -> tuple[str, tuple, dict]:
    """Map a case onto the common signature of the kernels.

    Parameters
    ----------
    case : Case

    Returns
    -------
    (str, tuple, dict)
        Function name, positional and keyword arguments. Arrays are handed over as stored:
        C-contiguous and of the dtype that the signature asks for.
    """
    p, a = case.params, case.arrays
    if case.kernel.startswith(("conv", "dw_")):
        return _spatial(case)
    if case.kernel.startswith("fc_"):
        return _fully_connected(case)
    if case.kernel == "vec_mat_s8":
        scale = (p["dst_mult"], p["dst_shift"])
        keywords = {
            "input_offset": p["lhs_offset"],
            "filter_offset": p["rhs_offset"],
            "output_offset": p["dst_offset"],
            **_clamp(case),
        }
        return "fully_connected_s8", (a["lhs"][None], a["rhs"], a.get("bias"), *scale), keywords
    if case.kernel in ("avgpool_s8", "maxpool_s8"):
        keywords = {
            "kernel": (p["filter_h"], p["filter_w"]),
            "stride": (p["stride_h"], p["stride_w"]),
            "padding": (p["pad_h"], p["pad_w"]),
            "output_size": (p["output_h"], p["output_w"]),
            **_clamp(case),
        }
        return case.kernel, (a["input"],), keywords
    if case.kernel in ("add_s8", "mul_s8"):
        keywords = {name: value for name, value in p.items() if name != "n"}
        return case.kernel, (a["input1"], a["input2"]), keywords
    if case.kernel == "softmax_s8":
        keywords = {name: p[name] for name in ("mult", "shift", "diff_min")}
        return case.kernel, (a["input"],), keywords
    return FUNCTIONS[case.kernel], (a["input"],), {}


def _clamp(case: Case) -> dict[str, int]:
    return {"act_min": case.params["act_min"], "act_max": case.params["act_max"]}


def _spatial(case: Case) -> tuple[str, tuple, dict]:
    p, a = case.params, case.arrays
    int4 = "weights_packed" in a
    depthwise = case.kernel.startswith("dw_")
    stride = (p["stride_h"], p["stride_w"])
    pointwise = case.kernel.startswith("conv_1x1") and stride == (1, 1)
    keywords = {"input_offset": p["input_offset"], "output_offset": p["output_offset"]}
    keywords |= _clamp(case)
    weights = a["weights_packed"] if int4 else a["weights"]
    if pointwise:
        name = "conv1x1"
        if not int4:
            weights = weights.reshape(weights.shape[0], weights.shape[3])
    else:
        name = "depthwise" if depthwise else "conv"
        keywords |= {
            "stride": stride,
            "padding": (p["pad_h"], p["pad_w"]),
            "dilation": (p["dilation_h"], p["dilation_w"]),
            "output_size": (p["output_h"], p["output_w"]),
        }
        if int4:
            keywords["kernel"] = (p["filter_h"], p["filter_w"])
    args = (a["input"], weights, a.get("bias"), a["multiplier"], a["shift"])
    return f"{name}_{'s4' if int4 else 's8'}", args, keywords


def _fully_connected(case: Case) -> tuple[str, tuple, dict]:
    p, a = case.params, case.arrays
    int4 = "weights_packed" in a
    keywords = {"input_offset": p["input_offset"], "output_offset": p["output_offset"]}
    keywords |= _clamp(case)
    if int4:
        keywords["rows"] = p["output_c"]
    else:
        keywords["filter_offset"] = p["filter_offset"]
    scale = (a["multiplier"], a["shift"])
    if case.kernel != "fc_pc_s8":
        scale = (int(scale[0][0]), int(scale[1][0]))
    x = a["input"].reshape(a["input"].shape[0], -1)
    weights = a["weights_packed"] if int4 else a["weights"]
    return f"fully_connected_{'s4' if int4 else 's8'}", (x, weights, a.get("bias"), *scale), keywords
