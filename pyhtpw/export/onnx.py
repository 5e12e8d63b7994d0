"""An image as an ONNX network of QuantizeLinear and DequantizeLinear (QDQ), for tools that read nothing else.

The form has no integer multipliers: a runtime requantises in float, or does not requantise at all, and rounds ties to even. So logits
are near the image's and not equal: whatever runs the file must say how near (`compare`). Weights, biases and zero points are the image's
own; scales are the multipliers. Add, mul and pools go through real numbers.
"""

from typing import Any

import numpy as np

from pyhtpw.errors import ExportError, MissingToolError
from pyhtpw.export.scales import real
from pyhtpw.export.tflite import expanded
from pyhtpw.image.integer import LINEAR, Op
from pyhtpw.image.reader import read_model
from pyhtpw.model import Image

OPSET, IR_VERSION = 17, 8


def to_onnx(image: Image) -> bytes:
    """The .onnx file: int8 windows (N, H, W, C) named "input" in, int8 "logits" (N, classes) out.

    Raises
    ------
    ExportError
        Naming every operator that has no counterpart, or whose multipliers no float32 expresses.
    MissingToolError
        Without the extra `export`.
    """
    return _Writer(image).model().SerializeToString(deterministic=True)


def compare(data: bytes, image: Image, windows: np.ndarray) -> dict[str, Any]:
    """How many logits of int8 `windows` (N, H, W, C) onnxruntime makes otherwise than the image, and by how much at most."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingToolError("comparing needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    theirs = np.concatenate([session.run(None, {"input": part})[0] for part in np.array_split(windows, -(-len(windows) // 64))])
    ours = image.run_batch(windows)
    gap = np.abs(ours.astype(int) - theirs.astype(int))
    return {
        "windows": len(windows),
        "logits": int(gap.size),
        "differing": int(np.count_nonzero(gap)),
        "largest_difference": int(gap.max()),
        "same_class": int(np.count_nonzero(ours.argmax(1) == theirs.argmax(1))),
    }


class _Writer:
    """Every activation is int8 (N, C, H, W) in the unit in which multipliers are given: scale 1, so that a weight's is its multiplier."""

    def __init__(self, image: Image) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingToolError("ONNX files need onnx: pip install 'pyhtpw[export]'") from error
        self.onnx, self.image = onnx, image
        self.integer, self.kernels = read_model(image.data, image.name), expanded(image)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.refused: list[str] = []

    def model(self) -> Any:
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        first, last = self.integer.input, self.integer.ops[-1].out
        values = [self._node("Transpose", ["input"], perm=[0, 3, 1, 2])]
        shapes = [first]
        for i, op in enumerate(self.integer.ops):
            handler = getattr(self, "_linear" if op.kind in LINEAR else f"_{op.kind}", None)
            if handler is None:
                self.refused.append(f"{op.name} ({op.kind}) has no counterpart in QDQ form")
                handler = self._missing
            values.append(handler(i, op, [values[t] for t in op.inputs], [shapes[t] for t in op.inputs]))
            shapes.append(op.out)
        if self.refused:
            raise ExportError(f"{self.image.name}: ONNX cannot say this: {'; '.join(self.refused)}")
        self._node("Reshape", [values[-1], self._constant("classes", np.array([-1, last.c], np.int64))], name="logits")
        graph = helper.make_graph(
            self.nodes, "pyhtpw",
            [helper.make_tensor_value_info("input", kinds.INT8, ["N", first.h, first.w, first.c])],
            [helper.make_tensor_value_info("logits", kinds.INT8, ["N", last.c])],
            [self.onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="pyhtpw")
        info = self.integer.info
        if info is not None:
            notes = {"input_scale": info.input_scale, "input_zero_point": first.zero_point, "logit_scale": info.logit_scale,
                     "classes": ",".join(info.classes)}
            helper.set_model_props(model, {key: str(value) for key, value in notes.items()})
        self.onnx.checker.check_model(model)
        return model

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _node(self, kind: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def _scalar(self, value: float | int, dtype: type) -> str:
        return self._constant(f"{np.dtype(dtype).name}_{value!r}".replace("-", "m"), np.array(value, dtype))

    def _reals(self, x: str, zero: int, scale: float = 1.0) -> str:
        return self._node("DequantizeLinear", [x, self._scalar(scale, np.float32), self._scalar(zero, np.int8)])

    def _stored(self, op: Op, y: str) -> str:
        """Back to int8: rounded, moved to the zero point, limited."""
        y = self._node("QuantizeLinear", [y, self._scalar(1.0, np.float32), self._scalar(op.out.zero_point, np.int8)])
        if (op.act_min, op.act_max) != (-128, 127):
            y = self._node("Clip", [y, self._scalar(op.act_min, np.int8), self._scalar(op.act_max, np.int8)])
        return y

    def _linear(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        w, q, shape, window = self.kernels[i], op.requant, shapes[0], op.window
        groups, source = window.groups if window else 1, x[0]
        if op.kind == "depthwise":
            w, groups = w.transpose(2, 0, 1)[:, None], shape.c
        elif op.kind == "conv":
            w = w.transpose(0, 3, 1, 2)
        else:
            if op.kind == "fc" and (shape.h, shape.w) != (1, 1):  # weights are in the order rows, columns, channels
                source = self._node("Transpose", [source], perm=[0, 2, 3, 1])
                source = self._node("Reshape", [source, self._constant(f"{op.name}_flat", np.array([-1, w.shape[1], 1, 1], np.int64))])
            w = w[:, :, None, None]
        pairs = zip(*(np.broadcast_to(a, op.out.c).tolist() for a in (q.multipliers, q.shifts)), strict=True)
        scales = np.array([real(*pair) for pair in pairs])
        dead = scales == 0
        scales = np.where(dead, 1.0, scales).astype(np.float32)
        w, biases = w.copy(), np.where(dead, 0, q.biases).astype(np.int32)
        w[dead] = 0
        weights = self._node("DequantizeLinear", [
            self._constant(f"{op.name}_weights", np.ascontiguousarray(w)), self._constant(f"{op.name}_scales", scales),
            self._constant(f"{op.name}_zeros", np.zeros(op.out.c, np.int8))], axis=0)  # fmt: skip
        bias = self._node("DequantizeLinear", [
            self._constant(f"{op.name}_bias", biases), f"{op.name}_scales",
            self._constant(f"{op.name}_bias_zeros", np.zeros(op.out.c, np.int32))], axis=0)  # fmt: skip
        kernel, stride, dilation, padding = (window.kernel, window.stride, window.dilation, window.padding) if window else (
            (1, 1), (1, 1), (1, 1), (0, 0))
        size = (shape.h, shape.w) if op.kind != "fc" else (1, 1)
        behind = [(o - 1) * s + (k - 1) * d + 1 - n - p for o, s, k, d, n, p in
                  zip((op.out.h, op.out.w), stride, kernel, dilation, size, padding, strict=True)]  # fmt: skip
        y = self._node("Conv", [self._reals(source, shape.zero_point), weights, bias], kernel_shape=list(kernel), strides=list(stride),
                       dilations=list(dilation), group=groups, pads=[*padding, *(max(b, 0) for b in behind)])
        return self._stored(op, self._cropped(op, y, behind, stride))

    def _cropped(self, op: Op, y: str, behind: list[int], stride: tuple[int, int]) -> str:
        """Without outputs that the image does not make."""
        if all(b > -s for b, s in zip(behind, stride, strict=True)):
            return y
        ends = self._constant(f"{op.name}_ends", np.array([op.out.h, op.out.w], np.int64))
        return self._node("Slice", [y, self._constant("starts", np.zeros(2, np.int64)), ends,
                                    self._constant("axes", np.array([2, 3], np.int64))])

    def _pool(self, kind: str, op: Op, x: str, shape: Any, **more: Any) -> str:
        window = op.window
        behind = [(o - 1) * s + k - n - p for o, s, k, n, p in zip(
            (op.out.h, op.out.w), window.stride, window.kernel, (shape.h, shape.w), window.padding, strict=True)]
        y = self._node(kind, [self._reals(x, shape.zero_point)], kernel_shape=list(window.kernel), strides=list(window.stride),
                       pads=[*window.padding, *(max(b, 0) for b in behind)], **more)
        return self._stored(op, self._cropped(op, y, behind, window.stride))

    def _avgpool(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        return self._pool("AveragePool", op, x[0], shapes[0], count_include_pad=0)

    def _maxpool(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        return self._pool("MaxPool", op, x[0], shapes[0])

    def _add(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        s = op.add
        out = real(s.multipliers[2], s.shifts[2]) * (1 << s.left_shift)
        terms = [self._reals(v, t.zero_point, float(np.float32(real(m, k) * out)))
                 for v, t, m, k in zip(x, shapes, s.multipliers, s.shifts, strict=False)]
        return self._stored(op, self._node("Add", terms))

    def _mul(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        scale = float(np.float32(real(op.mul.multiplier, op.mul.shift)))
        first, second = self._reals(x[0], shapes[0].zero_point), self._reals(x[1], shapes[1].zero_point, scale)
        return self._stored(op, self._node("Mul", [first, second]))

    def _table(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        table = np.clip(op.table, op.act_min, op.act_max).astype(np.int8)
        index = self._node("Cast", [x[0]], to=self.onnx.TensorProto.INT32)
        index = self._node("Add", [index, self._scalar(128, np.int32)])
        return self._node("Gather", [self._constant(f"{op.name}_table", table), index], axis=0)

    def _missing(self, i: int, op: Op, x: list[str], shapes: list) -> str:
        return x[0]
