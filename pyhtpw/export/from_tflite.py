"""An INT8 .tflite network as an integer model with stored kernels: `from_tflite`.

Convolutions, pools, means, additions and products keep TensorFlow Lite's arithmetic to the bit. FULLY_CONNECTED does not: LiteRT
rounds it once where a microcontroller rounds twice, so a few results differ by one; `compare` counts them. A softmax at the end is
dropped, since a classifier needs its order alone, and so are QUANTIZE and DEQUANTIZE at the ends of a network with float inputs.

The file is taken as hostile. What has no operator here is refused by name, all of it at once.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyhtpw.errors import ExportError, ImageError
from pyhtpw.export import interpreter
from pyhtpw.export.scales import ONE_HALF, add_multipliers, mean_multiplier, quantize_multiplier
from pyhtpw.export.schema import Network, Operator, Tensor, read
from pyhtpw.export.tflite import same_padding
from pyhtpw.image.integer import AddScalars, Info, IntegerModel, MulScalars, Op, Requant, Stored, Window
from pyhtpw.image.integer import Tensor as Shape
from pyhtpw.image.reader import CELLS_MAX
from pyhtpw.model import Image

VIEWS = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")
SHAPES = ("SHAPE", "STRIDED_SLICE", "PACK")  # what converters leave of a Flatten: numbers for a RESHAPE alone
APPROXIMATE = ("FULLY_CONNECTED",)
HANDLED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "ADD", "MUL", "PAD", "SOFTMAX",
           "QUANTIZE", "DEQUANTIZE", "MAXIMUM", "MINIMUM", *VIEWS, *SHAPES)  # fmt: skip


@dataclass
class Imported:
    """`network` is what of the file `model` stands for: without a softmax and conversions at its ends.

    `approximate` names the operators whose rounding is another one here; `dropped` those that have no counterpart.
    """

    model: IntegerModel
    network: Network
    approximate: tuple[str, ...]
    dropped: tuple[str, ...]


def from_tflite(data: bytes, name: str = "model") -> Imported:
    """Reads an INT8 .tflite file.

    Raises
    ------
    ImageError
        If the file is damaged or contradicts itself.
    ExportError
        Naming every operator that has no counterpart.
    MissingToolError
        Without the extra `export`.
    """
    return _Import(read(data, name), name).imported()


def compare(imported: Imported, image: Image, windows: np.ndarray) -> dict[str, Any]:
    """How many logits of int8 `windows` (N, H, W, C) differ from TensorFlow Lite's reference kernels (`pyhtpw.export.interpreter`)."""
    ours = image.run_batch(windows)
    parts = [interpreter.run(imported.network, part) for part in np.array_split(windows, -(-len(windows) // 16))]
    theirs = np.concatenate(parts).reshape(ours.shape)
    return {
        "windows": len(windows),
        "logits": int(ours.size),
        "differing": int(np.count_nonzero(ours != theirs)),
        "largest_difference": int(np.abs(ours.astype(int) - theirs).max()),
        "same_class": int(np.count_nonzero(ours.argmax(1) == theirs.argmax(1))),
    }


@dataclass
class _Value:
    """What a tensor of the file is here: a tensor of the model, or one with zeros around it (rows, columns; before, behind)."""

    index: int
    pad: tuple[tuple[int, int], tuple[int, int]] | None = None


@dataclass
class _Import:
    file: Network
    name: str
    ops: list[Op] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    values: dict[int, _Value] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    approximate: list[str] = field(default_factory=list)
    kept: list[Operator] = field(default_factory=list)

    def imported(self) -> Imported:
        unknown = Counter(op.code for op in self.file.operators if op.code not in HANDLED)
        if unknown:
            what = ", ".join(f"{code} ({count})" if count > 1 else code for code, count in sorted(unknown.items()))
            raise ExportError(f"{self.name}: no counterpart for {what}; known are {', '.join(HANDLED)}")
        if len(self.file.inputs) != 1 or len(self.file.outputs) != 1:
            raise ExportError(f"{self.name}: {len(self.file.inputs)} inputs and {len(self.file.outputs)} outputs; one of each is read")
        first = self._first()
        t = self._int8(first)
        self.shapes.append(Shape(*self._hwc(t), t.zero))
        self.values[first] = _Value(0)
        last, ends = self.file.outputs[0], set()
        for i, op in reversed(list(enumerate(self.file.operators))):
            if len(op.outputs) != 1 or not op.inputs or op.inputs[0] < 0:
                raise ImageError(f"{self.name}: {op.code} has {len(op.inputs)} inputs and {len(op.outputs)} outputs")
            if op.code in ("SOFTMAX", "DEQUANTIZE") and op.outputs[0] == last:
                self.dropped.append(op.code)
                last = op.inputs[0]
                ends.add(i)
        for i, op in enumerate(self.file.operators):
            if i not in ends and op.outputs[0] != first and not self._is_shape(op):  # the latter is the QUANTIZE of a float input
                self._operator(op)
        if self.problems:
            raise ExportError(f"{self.name}: {'; '.join(self.problems)}")
        return self._finished(first, last)

    def _first(self) -> int:
        """The int8 input: the network's, or what the QUANTIZE behind a float one makes."""
        at = self.file.inputs[0]
        if self.file.tensors[at].dtype == "float32":
            makers = [op for op in self.file.operators if op.code == "QUANTIZE" and op.inputs == (at,) and len(op.outputs) == 1]
            if len(makers) == 1:
                self.dropped.append("QUANTIZE")
                return makers[0].outputs[0]
        return at

    def _is_shape(self, op: Operator) -> bool:
        """Whether an operator makes nothing but sizes: the shape of a RESHAPE's output is in the file anyway."""
        made = op.outputs[0]
        readers = [other for other in self.file.operators if made in other.inputs]
        return op.code in SHAPES and self.file.tensors[made].dtype == "int32" and all(
            other.code in SHAPES or (other.code == "RESHAPE" and made not in other.inputs[:1]) for other in readers)

    def _finished(self, first: int, last: int) -> Imported:
        value = self.values.get(last)
        if value is None or value.pad is not None or value.index != len(self.ops) or not self.ops:
            raise ExportError(f"{self.name}: the output is not what the last operator makes")
        out = self.shapes[value.index]
        if (out.h, out.w) != (1, 1):
            raise ExportError(f"{self.name}: the output has shape {(out.h, out.w, out.c)}; classifiers with (1, 1, classes) are read")
        source, logits = self.file.tensors[first], self.file.tensors[last]
        info = Info(source.scale, logits.scale, 0.5, 0.0, _line(self.file.description or self.name),
                    tuple(f"class {i}" for i in range(out.c)))
        model = IntegerModel(self.shapes[0], tuple(self.ops), info)
        network = replace(self.file, operators=self.kept, inputs=(first,), outputs=(last,))
        return Imported(model, network, tuple(self.approximate), tuple(self.dropped))

    # -- records ------------------------------------------------------------------------------------------------------

    def _label(self, op: Operator) -> str:
        return f"{op.code} {self.file.tensors[op.outputs[0]].name!r}"

    def _int8(self, index: int) -> Tensor:
        t = self.file.tensors[index]
        if t.dtype != "int8":
            raise ExportError(f"{self.name}: tensor {t.name!r} is {t.dtype}: convert with full integer (int8) quantisation")
        if t.scales is None or len(t.scales) != 1 or not t.scale > 0 or not -128 <= t.zero <= 127:
            raise ImageError(f"{self.name}: activation {t.name!r} needs one scale above 0 and a zero point of int8")
        return t

    def _hwc(self, t: Tensor) -> tuple[int, int, int]:
        if not 2 <= len(t.shape) <= 4 or t.shape[0] != 1 or min(t.shape) < 1:
            raise ExportError(f"{self.name}: tensor {t.name!r} has shape {t.shape}; (1, H, W, C), (1, T, C) and (1, C) are read")
        if math.prod(t.shape) > CELLS_MAX:
            raise ExportError(f"{self.name}: tensor {t.name!r} has {math.prod(t.shape):,} elements; an image holds at most {CELLS_MAX:,}")
        h, w, c = ((1, 1, 1) + t.shape[1:])[-3:]
        return h, w, c

    def _constant(self, op: Operator, index: int, dtype: str, rank: int) -> Tensor:
        t = self.file.tensors[index] if index >= 0 else None
        if t is None or t.data is None or t.dtype != dtype or len(t.shape) != rank or 0 in t.shape:
            raise ExportError(f"{self.name}: {self._label(op)} needs a constant {dtype} tensor with {rank} dimensions")
        return t

    def _input(self, op: Operator, at: int = 0, *, padded: bool = False, any_shape: bool = False) -> tuple[_Value, Tensor, Shape]:
        index = op.inputs[at] if at < len(op.inputs) else -1
        value = self.values.get(index)
        if value is None:
            raise ExportError(f"{self.name}: {self._label(op)} reads a tensor that no operator before it makes")
        if value.pad is not None and not padded:
            self.problems.append(f"{self._label(op)} reads a PAD; only convolutions with VALID padding can")
        t, shape = self._int8(index), self.shapes[value.index]
        if value.pad is None and self._hwc(t) != (shape.h, shape.w, shape.c) and not (any_shape and math.prod(t.shape) == shape.size):
            self.problems.append(f"{self._label(op)} reads {t.shape}, reshaped from {(shape.h, shape.w, shape.c)}")
        return value, t, shape

    def _emit(self, op: Operator, kind: str, inputs: tuple[int, ...], shape: tuple[int, int, int], **more: Any) -> None:
        out = self._int8(op.outputs[0])
        low, high = interpreter.limits(op, out) if "FusedActivationFunction" in op.options else (-128, 127)
        if low > high:
            raise ImageError(f"{self.name}: {self._label(op)} has an empty range [{low}, {high}]")
        if math.prod(shape) != math.prod(out.shape):
            raise ImageError(f"{self.name}: {self._label(op)} makes {shape}, but its output has the shape {out.shape}")
        made = Shape(*shape, out.zero)
        self.ops.append(Op(f"{kind}{len(self.ops)}", kind, inputs, made, low, high, **more))
        self.shapes.append(made)
        self.values[op.outputs[0]] = _Value(len(self.ops))
        self.kept.append(op)

    def _operator(self, op: Operator) -> None:
        if op.options.get("FusedActivationFunction", "NONE") not in interpreter.ACTIVATIONS:
            self.problems.append(f"{self._label(op)} has the activation {op.options['FusedActivationFunction']}")
            op.options["FusedActivationFunction"] = "NONE"
        handler = {"CONV_2D": self._convolution, "DEPTHWISE_CONV_2D": self._convolution, "FULLY_CONNECTED": self._fully_connected,
                   "AVERAGE_POOL_2D": self._pool, "MAX_POOL_2D": self._pool, "MEAN": self._mean, "ADD": self._add, "MUL": self._mul,
                   "PAD": self._pad, "QUANTIZE": self._table, "MAXIMUM": self._table, "MINIMUM": self._table}  # fmt: skip
        if op.code in VIEWS:
            value, t, shape = self._input(op, any_shape=True)
            out = self._int8(op.outputs[0])
            if math.prod(out.shape) != shape.size or out.zero != t.zero:
                raise ImageError(f"{self.name}: {self._label(op)} turns {t.shape} into {out.shape}, or changes the zero point")
            self.values[op.outputs[0]] = value
            self.kept.append(op)
        elif op.code in handler:
            if op.code in APPROXIMATE:
                self.approximate.append(self._label(op))
            handler[op.code](op)
        else:
            self.problems.append(f"{self._label(op)} is known only at the end of a network")

    # -- operators ----------------------------------------------------------------------------------------------------

    def _requant(self, op: Operator, x: Tensor, w: Tensor, axis: int, channels: int) -> Requant:
        if w.scales is None or len(w.scales) not in (1, channels) or (len(w.scales) > 1 and w.axis != axis):
            raise ImageError(f"{self.name}: weights of {self._label(op)} need one scale, or one for each of {channels} channels")
        if w.zero_points is not None and np.any(w.zero_points):
            raise ExportError(f"{self.name}: weights of {self._label(op)} have a zero point other than 0")
        out = self._int8(op.outputs[0])
        pairs = [quantize_multiplier(x.scale * float(s) / out.scale) for s in w.scales]
        if any(not -31 <= s <= 30 for _, s in pairs):
            raise ImageError(f"{self.name}: scales of {self._label(op)} are beyond every shift")
        if len(set(pairs)) == 1:
            pairs = pairs[:1]
        biases = np.zeros(channels, np.int64)
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            bias = self._constant(op, op.inputs[2], "int32", 1)
            if bias.shape != (channels,):
                raise ImageError(f"{self.name}: {self._label(op)} has {bias.shape[0]} biases for {channels} channels")
            biases = bias.data.astype(np.int64)
        return Requant(*(np.array(column, np.int64) for column in zip(*pairs, strict=True)), biases)

    def _spatial(self, op: Operator, value: _Value, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)):
        """Stride, padding in front and outputs of a window."""
        stride = op.options["StrideH"], op.options["StrideW"]
        if min(*stride, *kernel, *dilation) < 1 or op.options["Padding"] not in ("SAME", "VALID"):
            raise ImageError(f"{self.name}: {self._label(op)} has a stride, window or dilation below 1, or an unknown padding")
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if op.options["Padding"] == "SAME":
            if value.pad is not None:
                self.problems.append(f"{self._label(op)} pads what a PAD has padded")
            found = [same_padding(n, r, s) for n, r, s in zip(size, reach, stride, strict=True)]
        else:
            pads = value.pad or ((0, 0), (0, 0))
            found = [((n + sum(p) - r) // s + 1, p[0]) for n, p, r, s in zip(size, pads, reach, stride, strict=True)]
        out, padding = tuple(f[0] for f in found), tuple(f[1] for f in found)
        if min(out) < 1:
            raise ImageError(f"{self.name}: {self._label(op)} has a window larger than its input")
        return stride, padding, out

    def _convolution(self, op: Operator) -> None:
        value, x, shape = self._input(op, padded=True, any_shape=True)
        w = self._constant(op, op.inputs[1] if len(op.inputs) > 1 else -1, "int8", 4)
        depthwise = op.code == "DEPTHWISE_CONV_2D"
        channels, kernel = w.shape[3 if depthwise else 0], w.shape[1:3]
        q = self._requant(op, x, w, 3 if depthwise else 0, channels)
        flat = value.pad is None and self._hwc(x) != (shape.h, shape.w, shape.c)
        if flat:  # of a whole tensor: what is fully connected here
            if depthwise or kernel != (1, 1) or self._hwc(x) != (1, 1, shape.size) or w.shape[3] != shape.size:
                self.problems.append(f"{self._label(op)} reads {x.shape}, reshaped from {(shape.h, shape.w, shape.c)}")
                return
            self._emit(op, "fc", (value.index,), (1, 1, channels), weights=Stored(w.data.reshape(channels, -1)), requant=q)
            return
        dilation = op.options["DilationHFactor"], op.options["DilationWFactor"]
        stride, padding, size = self._spatial(op, value, (shape.h, shape.w), kernel, dilation)
        groups = 1
        if depthwise:
            if w.shape[0] != 1 or channels % shape.c or op.options["DepthMultiplier"] not in (0, channels // shape.c):
                raise ImageError(f"{self.name}: {self._label(op)} has weights {w.shape} for {shape.c} channels")
        else:
            if shape.c % w.shape[3] or channels % (shape.c // w.shape[3]):
                raise ImageError(f"{self.name}: {self._label(op)} has weights {w.shape} for {shape.c} channels")
            groups = shape.c // w.shape[3]
        window = Window(kernel, stride, padding, dilation, groups)
        if not depthwise and window == Window((1, 1)) and size == (shape.h, shape.w):
            self._emit(op, "conv1x1", (value.index,), (*size, channels), weights=Stored(w.data.reshape(channels, -1)), requant=q)
            return
        kind = "depthwise" if depthwise else "conv"
        weights = Stored(w.data[0] if depthwise else w.data)
        self._emit(op, kind, (value.index,), (*size, channels), weights=weights, requant=q, window=window)

    def _fully_connected(self, op: Operator) -> None:
        value, x, shape = self._input(op, any_shape=True)
        w = self._constant(op, op.inputs[1] if len(op.inputs) > 1 else -1, "int8", 2)
        if op.options["WeightsFormat"] != 0:
            self.problems.append(f"{self._label(op)} has shuffled weights")
        if w.shape[1] != shape.size:
            self.problems.append(f"{self._label(op)} has weights {w.shape} for {shape.size} inputs, so it serves every position by itself")
            return
        self._emit(op, "fc", (value.index,), (1, 1, w.shape[0]), weights=Stored(w.data), requant=self._requant(op, x, w, 0, w.shape[0]))

    def _pool(self, op: Operator) -> None:
        value, x, shape = self._input(op)
        out = self._int8(op.outputs[0])
        if (x.scale, x.zero) != (out.scale, out.zero):
            raise ImageError(f"{self.name}: {self._label(op)} changes scale or zero point")
        kernel = op.options["FilterHeight"], op.options["FilterWidth"]
        stride, padding, size = self._spatial(op, value, (shape.h, shape.w), kernel)
        kind = "maxpool" if op.code == "MAX_POOL_2D" else "avgpool"
        self._emit(op, kind, (value.index,), (*size, shape.c), window=Window(kernel, stride, padding))

    def _mean(self, op: Operator) -> None:
        value, x, shape = self._input(op)
        axes = self._constant(op, op.inputs[1] if len(op.inputs) > 1 else -1, "int32", 1)
        rank = len(x.shape)
        found = {int(a) % rank for a in axes.data}
        if not ((found == {1, 2} and rank == 4) or (found == {1} and rank == 3)):
            self.problems.append(f"{self._label(op)} is not over rows and columns, but dimensions {sorted(found)}")
            return
        out, window = self._int8(op.outputs[0]), (shape.h, shape.w)
        pair = mean_multiplier(x.scale / out.scale, shape.h * shape.w)
        q = Requant(np.array([pair[0]]), np.array([pair[1]]), np.zeros(shape.c, np.int64))
        ones = np.ones((*window, shape.c), np.int8)
        self._emit(op, "depthwise", (value.index,), (1, 1, shape.c), weights=Stored(ones, 2), requant=q, window=Window(window))

    def _add(self, op: Operator) -> None:
        (a, x, first), (b, y, second) = self._input(op), self._input(op, 1)
        if (first.h, first.w, first.c) != (second.h, second.w, second.c):
            self.problems.append(f"{self._label(op)} broadcasts {y.shape} to {x.shape}")
            return
        pairs = add_multipliers(x.scale, y.scale, self._int8(op.outputs[0]).scale)
        if ONE_HALF not in pairs[:2] or pairs[2][1] > 0:
            raise ImageError(f"{self.name}: scales of {self._label(op)} are beyond what an addition can have")
        scalars = AddScalars(20, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))
        self._emit(op, "add", (a.index, b.index), (first.h, first.w, first.c), add=scalars)

    def _mul(self, op: Operator) -> None:
        (a, x, first), (b, y, second) = self._input(op), self._input(op, 1)
        if first.size < second.size:
            a, b, first, second = b, a, second, first
        if (second.h, second.w, second.c) not in ((first.h, first.w, first.c), (1, 1, first.c)):
            self.problems.append(f"{self._label(op)} broadcasts {y.shape} to {x.shape}")
            return
        scale = np.float32(x.scale) * np.float32(y.scale) / np.float32(self._int8(op.outputs[0]).scale)
        self._emit(op, "mul", (a.index, b.index), (first.h, first.w, first.c), mul=MulScalars(*quantize_multiplier(float(scale))))

    def _pad(self, op: Operator) -> None:
        value, x, _ = self._input(op)
        sides = self._constant(op, op.inputs[1] if len(op.inputs) > 1 else -1, "int32", 2)
        out = self._int8(op.outputs[0])
        if sides.shape != (len(x.shape), 2) or sides.data.min() < 0 or sides.data.max() > 65535:
            raise ImageError(f"{self.name}: {self._label(op)} has bad paddings")
        wide = np.zeros((4, 2), int)
        wide[1 if len(x.shape) == 4 else 2 :] = sides.data[1:]
        if len(x.shape) < 3 or sides.data[0].any() or wide[3].any() or out.zero != x.zero:
            self.problems.append(f"{self._label(op)} pads more than rows and columns")
        self.values[op.outputs[0]] = _Value(value.index, (tuple(wide[1].tolist()), tuple(wide[2].tolist())))
        self.kept.append(op)

    def _table(self, op: Operator) -> None:
        """Any function of one int8: all 256 results, made by TensorFlow Lite's arithmetic."""
        value, x, shape = self._input(op)
        inputs: list[Any] = [np.arange(-128, 128).astype(np.int8)]
        infos: list[Any] = [x]
        if op.code != "QUANTIZE":
            bound = self.file.tensors[op.inputs[1]] if len(op.inputs) > 1 and op.inputs[1] >= 0 else None
            if bound is None or bound.data is None or bound.dtype != "int8" or bound.data.size != 1:
                self.problems.append(f"{self._label(op)} is known with one constant number alone")
                return
            inputs.append(bound.data.reshape(-1))
            infos.append(bound)
        table = interpreter.HANDLERS[op.code](op, inputs, infos, self._int8(op.outputs[0]))
        self._emit(op, "table", (value.index,), (shape.h, shape.w, shape.c), table=table)


def _line(text: str) -> str:
    return " ".join(text.split())[:80]
