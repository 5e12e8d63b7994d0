"""An image as an INT8 .tflite file in which every kernel is there, from which LiteRT's reference kernels make the same logits to the bit.

What that takes:

- The interpreter derives multipliers from float32 scales (`pyhtpw.export.scales`), so scales are chosen for the multipliers: all
  activations carry the scale of the model's input, and a weight's scale is then the multiplier itself. Input and output of the
  network have their true scales. Those in between are labels: integers alone decide the result.
- Where one operator needs other labels (ADD, wide multipliers, the output), a RESHAPE to the same shape carries the same bytes from one
  label to the next.
- The fully connected layer goes out as a 1x1 CONV_2D and global pooling as AVERAGE_POOL_2D, because the interpreter's own
  FULLY_CONNECTED and MEAN round differently. Padding that neither SAME nor VALID gives is a PAD; limits other than those of a ReLU are
  MAXIMUM and MINIMUM; a table is CAST, ADD and GATHER; an attend SOFTMAX and BATCH_MATMUL where it can be said.

What cannot be said exactly is refused, all of it at once, by operator and channel.
"""

import json
import math

import numpy as np

from pyhtpw.errors import ExportError
from pyhtpw.export import scales
from pyhtpw.export.schema import Network, Operator, Tensor, write
from pyhtpw.image.integer import LINEAR, POOLS, IntegerModel, Op
from pyhtpw.image.integer import Tensor as Shape
from pyhtpw.image.reader import read_model
from pyhtpw.model import Image

METADATA = "pyhtpw"


def expanded(image: Image) -> dict[int, np.ndarray]:
    """Operator -> int8 weights in the shape of docs/SPEC.md section 1, of every linear operator: synthesised where they are generated."""
    if image.codes_number:  # its multipliers are in the pack, its records in the base
        raise ExportError(f"{image.name}: a code pack is applied: open the image that pyhtpw.image.codes.apply_pack makes of both")
    made = image.kernels()
    model = read_model(image.data, image.name)
    return {
        i: (made[i] if i in made else op.weights.values).reshape(image.parsed.ops[i].weight_shape)  # noqa: SIM401 - generated: none
        for i, op in enumerate(model.ops)
        if op.kind in LINEAR
    }


def to_tflite(image: Image) -> bytes:
    """The .tflite file of an image.

    Raises
    ------
    ExportError
        Naming every operator that TensorFlow Lite cannot express to the bit, and why.
    MissingToolError
        Without the extra `export`.
    """
    return write(_Lowering(image).network())


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(outputs, padding in front) of SAME; `kernel` counts dilation."""
    out = -(-size // stride)
    return out, max((out - 1) * stride + kernel - size, 0) // 2


def _others(channels: np.ndarray) -> str:
    return f" (and {len(channels) - 1} more channels)" if len(channels) > 1 else ""


class _Lowering:
    def __init__(self, image: Image) -> None:
        self.model: IntegerModel = read_model(image.data, image.name)
        self.kernels, self.name = expanded(image), image.name
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.refused: list[str] = []
        self.constants: dict[tuple, int] = {}
        info = self.model.info
        true = [float(np.float32(v)) if info and 1e-20 < v < 1e20 else 1.0
                for v in ((info.input_scale, info.logit_scale) if info else (1.0, 1.0))]
        self.unit, self.logit_scale = true

    # -- records ------------------------------------------------------------------------------------------------------

    def activation(self, name: str, shape: Shape | tuple[int, ...], zero: int, scale: float | None = None, dtype: str = "int8") -> int:
        dims = (1, shape.h, shape.w, shape.c) if isinstance(shape, Shape) else shape
        quantised = dtype == "int8"
        self.tensors.append(Tensor(
            name, dims, dtype, None,
            np.array([self.unit if scale is None else scale], np.float32) if quantised else None,
            np.array([zero], np.int64) if quantised else None,
        ))  # fmt: skip
        return len(self.tensors) - 1

    def constant(self, name: str, data: np.ndarray, scale: np.ndarray | None = None, zero: int = 0, axis: int = 0) -> int:
        zeros = None if scale is None else np.full(len(scale), zero, np.int64)
        self.tensors.append(Tensor(name, data.shape, str(data.dtype), data, scale, zeros, axis))
        return len(self.tensors) - 1

    def shared(self, data: np.ndarray, scale: float | None = None, zero: int = 0) -> int:
        """A constant that serves whoever asks for the same."""
        key = (str(data.dtype), data.shape, data.tobytes(), scale, zero)
        if key not in self.constants:
            scales_ = None if scale is None else np.array([scale], np.float32)
            self.constants[key] = self.constant(f"constant{len(self.constants)}", data, scales_, zero)
        return self.constants[key]

    def emit(self, code: str, inputs: tuple[int, ...], output: int, **options: object) -> int:
        self.operators.append(Operator(code, inputs, (output,), options))
        return output

    def relabelled(self, x: int, scale: float, shape: tuple[int, ...] | None = None, name: str = "") -> int:
        """The same bytes under another scale, or in another shape."""
        old = self.tensors[x]
        shape = old.shape if shape is None else shape
        if scale == old.scale and shape == old.shape:
            return x
        out = self.activation(name or f"{old.name}/as", shape, old.zero, scale)
        return self.emit("RESHAPE", (x, self.shared(np.array([-1, *shape[1:]], np.int32))), out)

    # -- the walk -----------------------------------------------------------------------------------------------------

    def network(self) -> Network:
        values = [self.activation("input", self.model.input, self.model.input.zero_point)]
        for i, op in enumerate(self.model.ops):
            handler = "_linear" if op.kind in LINEAR else "_pool" if op.kind in POOLS else f"_{op.kind}"
            made = getattr(self, handler)(i, op, [values[t] for t in op.inputs])
            values.append(self.relabelled(self._limited(op, made), self.unit))
        if self.refused:
            raise ExportError(f"{self.name}: TensorFlow Lite cannot say this to the bit: {'; '.join(self.refused)}")
        last = self.relabelled(values[-1], self.logit_scale, (1, self.model.ops[-1].out.c), "logits")
        info = self.model.info
        notes = {
            "scales": "input and logits are in their true scales; those between are labels that give the integer multipliers",
            "operators": len(self.model.ops),
        }
        if info:
            notes |= {"name": info.name, "classes": list(info.classes), "threshold": info.threshold, "sample_rate_hz": info.sample_rate}
        return Network(self.tensors, self.operators, (0,), (last,), "pyhtpw: kernels expanded, logits equal to the bit",
                       {METADATA: json.dumps(notes, sort_keys=True).encode()})

    def _refuse(self, op: Op, why: str) -> None:
        self.refused.append(f"{op.name} ({op.kind}): {why}")

    def _fused(self, op: Op) -> str | None:
        """Activation that the operator itself can do, or None."""
        if op.act_max != 127:
            return None
        return "NONE" if op.act_min == -128 else "RELU" if op.act_min == op.out.zero_point else None

    def _limited(self, op: Op, value: int, always: bool = False) -> int:
        """Limits that no fused activation gives, by MAXIMUM and MINIMUM."""
        if not always and (op.kind == "table" or (op.kind != "attend" and self._fused(op) is not None)):
            return value
        made = self.tensors[value]
        for code, limit, off in (("MAXIMUM", op.act_min, -128), ("MINIMUM", op.act_max, 127)):
            if limit != off:
                bound = self.shared(np.array([limit], np.int8), made.scale, made.zero)
                value = self.emit(code, (value, bound), self.activation(f"{op.name}/{code.lower()}", op.out, made.zero, made.scale))
        return value

    # -- linear operators ---------------------------------------------------------------------------------------------

    def _linear(self, i: int, op: Op, x: list[int]) -> int:
        w, q, x0 = self.kernels[i], op.requant, x[0]
        if op.kind == "fc":
            x0 = self.relabelled(x0, self.unit, (1, 1, 1, math.prod(self.tensors[x0].shape)), f"{op.name}/flat")
        channels = op.out.c
        multipliers, shifts = (np.broadcast_to(a, channels) for a in (q.multipliers, q.shifts))
        into, biases, axis = w.copy(), np.asarray(q.biases).astype(np.int32), w.ndim - 1 if op.kind == "depthwise" else 0
        dead = multipliers == 0  # everything times 0: weights of 0 with any multiplier
        into[(slice(None),) * axis + (dead,)] = 0
        biases[dead] = 0
        low = np.flatnonzero(~dead & (multipliers < 1 << 30))
        if low.size and (made := self._mean(op, x0, into, biases)) is not None:
            return made
        found = None if low.size else scales.linear_scales(multipliers[~dead], shifts[~dead])
        if low.size:
            self._refuse(op, f"channel {low[0]}: multiplier {multipliers[low[0]]} is below 2^30, which no scale gives{_others(low)}")
        elif found is None:
            wide = np.flatnonzero(multipliers & 0x7F)
            self._refuse(op, f"channel {wide[0]}: no float32 scale gives multiplier {multipliers[wide[0]]}{_others(wide)}")
        in_scale, out_scale, live = found or (1.0, 1.0, 1.0)
        if in_scale == out_scale:
            in_scale = out_scale = self.unit
        w_scales = np.ones(channels, np.float32)
        w_scales[~dead] = live
        x0 = self.relabelled(x0, in_scale)
        depthwise = op.kind == "depthwise"
        if op.kind in ("fc", "conv1x1"):
            into = into.reshape(channels, 1, 1, -1)
        weights = self.constant(f"{op.name}/weights", into[None] if depthwise else into, w_scales, axis=3 if depthwise else 0)
        bias = self.constant(f"{op.name}/bias", biases, (w_scales.astype(np.float64) * in_scale).astype(np.float32))
        window = op.window
        kernel, stride, dilation = (window.kernel, window.stride, window.dilation) if window else ((1, 1),) * 3
        x0, padding = self._padded(op, x0, kernel, stride, dilation, window.padding if window else (0, 0))
        options = {"Padding": padding, "StrideH": stride[0], "StrideW": stride[1], "DilationHFactor": dilation[0],
                   "DilationWFactor": dilation[1], "FusedActivationFunction": self._fused(op) or "NONE"}  # fmt: skip
        if depthwise:
            options["DepthMultiplier"] = channels // self.tensors[x0].shape[3]
        out = self.activation(op.name, op.out, op.out.zero_point, out_scale)
        return self.emit("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", (x0, weights, bias), out, **options)

    def _mean(self, op: Op, x: int, weights: np.ndarray, biases: np.ndarray) -> int | None:
        """A depthwise operator that is a MEAN, as the import leaves one: its multiplier has 1/n in it, and may be below 2^30."""
        _, *window, channels = self.tensors[x].shape
        whole = op.kind == "depthwise" and tuple(window) == op.window.kernel and (weights == 1).all() and not biases.any()
        one = (op.out.h, op.out.w, op.out.c) == (1, 1, channels) and op.requant.multipliers.size == 1
        if not whole or not one or op.window.padding != (0, 0):
            return None
        pair = int(op.requant.multipliers[0]), int(op.requant.shifts[0])
        found = scales.mean_scales(*pair, math.prod(window))
        if found is None:
            return None
        made = self.activation(op.name, op.out, op.out.zero_point, found[1])
        axes = self.shared(np.array([1, 2], np.int32))
        made = self.emit("MEAN", (self.relabelled(x, found[0]), axes), made, KeepDims=True)
        return made if self._fused(op) == "NONE" else self._limited(op, made, True)

    def _padded(self, op: Op, x: int, kernel, stride, dilation, padding, fill: int | None = None) -> tuple[int, str]:
        """The input as SAME or VALID wants it: as it is, or padded and cut by operators of their own."""
        size, out = self.tensors[x].shape[1:3], (op.out.h, op.out.w)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if [same_padding(n, r, s) for n, r, s in zip(size, reach, stride, strict=True)] == list(zip(out, padding, strict=True)):
            return x, "SAME"
        behind = [(o - 1) * s + r - n - p for o, s, r, n, p in zip(out, stride, reach, size, padding, strict=True)]
        # what no window reads may stay where VALID makes the same number of outputs
        behind = [0 if -s < b < 0 else b for b, s in zip(behind, stride, strict=True)]
        old = self.tensors[x]
        if min(behind) < 0:
            kept = [n + min(b, 0) for n, b in zip(size, behind, strict=True)]
            if min(kept) < 1:  # windows in the padding alone: one row or column is kept to pad
                kept = [max(n, 1) for n in kept]
            cut = self.activation(f"{op.name}/cut", (1, *kept, old.shape[3]), old.zero, old.scale)
            begin = self.shared(np.zeros(4, np.int32))
            x = self.emit("SLICE", (x, begin, self.shared(np.array([-1, *kept, -1], np.int32))), cut)
            behind = [(o - 1) * s + r - n - p for o, s, r, n, p in zip(out, stride, reach, kept, padding, strict=True)]
            if any(b <= -s for b, s in zip(behind, stride, strict=True)):
                self._refuse(op, "its windows end in the padding before the input")
            behind = [max(b, 0) for b in behind]
        if max(*padding, *behind) > 0:
            sides = np.array([[0, 0], [padding[0], behind[0]], [padding[1], behind[1]], [0, 0]], np.int32)
            dims = tuple(n + int(s) for n, s in zip(self.tensors[x].shape, sides.sum(1), strict=True))
            wide = self.activation(f"{op.name}/padded", dims, old.zero, old.scale)
            if fill is None:  # the zero point, which adds nothing
                x = self.emit("PAD", (x, self.shared(sides)), wide)
            else:
                x = self.emit("PADV2", (x, self.shared(sides), self.shared(np.array([fill], np.int8), old.scale, old.zero)), wide)
        return x, "VALID"

    # -- the others ---------------------------------------------------------------------------------------------------

    def _pool(self, _: int, op: Op, x: list[int]) -> int:
        window, x0 = op.window, x[0]
        if op.kind == "maxpool":
            x0, padding = self._padded(op, x0, window.kernel, window.stride, (1, 1), window.padding, fill=-128)
        else:
            before = len(self.operators)
            x0, padding = self._padded(op, x0, window.kernel, window.stride, (1, 1), window.padding)
            if any(o.code == "PAD" for o in self.operators[before:]):
                self._refuse(op, f"padding {window.padding} is neither SAME nor VALID, and padded cells would count in the mean")
        out = self.activation(op.name, op.out, op.out.zero_point)
        return self.emit(
            "MAX_POOL_2D" if op.kind == "maxpool" else "AVERAGE_POOL_2D", (x0,), out, Padding=padding,
            StrideH=window.stride[0], StrideW=window.stride[1], FilterHeight=window.kernel[0], FilterWidth=window.kernel[1],
            FusedActivationFunction=self._fused(op) or "NONE",
        )  # fmt: skip

    def _add(self, _: int, op: Op, x: list[int]) -> int:
        found = scales.add_scales(op.add.multipliers, op.add.shifts) if op.add.left_shift == 20 else None
        if found is None:
            why = f"left shift {op.add.left_shift}, TensorFlow Lite has 20" if op.add.left_shift != 20 else (
                f"no float32 scales give multipliers {op.add.multipliers} with shifts {op.add.shifts}; one input's must be 1/2")
            self._refuse(op, why)
            found = (self.unit,) * 3
        first, second, out = found
        inputs = self.relabelled(x[0], first), self.relabelled(x[1], second)
        made = self.activation(op.name, op.out, op.out.zero_point, out)
        return self.emit("ADD", inputs, made, FusedActivationFunction=self._fused(op) or "NONE")

    def _mul(self, _: int, op: Op, x: list[int]) -> int:
        scale = float(np.float32(scales.real(op.mul.multiplier, op.mul.shift)))  # the product of scales is taken in float32 there
        if scales.quantize_multiplier(scale) != (op.mul.multiplier, op.mul.shift):
            self._refuse(op, f"no float32 scale gives multiplier {op.mul.multiplier}")
        inputs = self.relabelled(x[0], 1.0), self.relabelled(x[1], scale)
        made = self.activation(op.name, op.out, op.out.zero_point, 1.0)
        return self.emit("MUL", inputs, made, FusedActivationFunction=self._fused(op) or "NONE")

    def _table(self, _: int, op: Op, x: list[int]) -> int:
        dims = self.tensors[x[0]].shape
        wide = self.activation(f"{op.name}/int32", dims, 0, dtype="int32")
        self.emit("CAST", (x[0],), wide, InDataType=9, OutDataType=2)
        index = self.activation(f"{op.name}/index", dims, 0, dtype="int32")
        self.emit("ADD", (wide, self.shared(np.array([128], np.int32))), index, FusedActivationFunction="NONE")
        entries = np.clip(op.table, op.act_min, op.act_max).astype(np.int8)
        table = self.constant(f"{op.name}/table", entries, np.array([self.unit], np.float32), op.out.zero_point)
        made = self.activation(op.name, op.out, op.out.zero_point)
        return self.emit("GATHER", (table, index), made, Axis=0)

    def _attend(self, _: int, op: Op, x: list[int]) -> int:
        s = op.attend
        scale = scales.softmax_scale(s.softmax_multiplier, s.softmax_shift, s.softmax_range)
        if scale is None:
            self._refuse(op, f"no float32 scale gives the softmax multiplier {s.softmax_multiplier} with range {s.softmax_range}")
            scale = 1.0
        factor = float(np.float32(scales.real(s.multiplier, s.shift) * 256))
        if scales.quantize_multiplier(factor / 256) != (s.multiplier, s.shift):
            self._refuse(op, f"no float32 scale gives multiplier {s.multiplier}")
        _, h, w, c = self.tensors[x[0]].shape
        scores = self.relabelled(x[1], scale, (1, 1, 1, h * w), f"{op.name}/scores")
        p = self.emit("SOFTMAX", (scores,), self.activation(f"{op.name}/softmax", (1, 1, 1, h * w), -128, 1 / 256), Beta=1.0)
        rows = self.relabelled(x[0], factor, (1, 1, h * w, c), f"{op.name}/rows")
        made = self.activation(op.name, (1, 1, 1, c), op.out.zero_point, 1.0)
        return self.emit("BATCH_MATMUL", (p, rows), made, AdjX=False, AdjY=False)
