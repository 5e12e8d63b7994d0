"""TensorFlow Lite files as plain records: `write` and `read`, over the schema package `tflite` and `flatbuffers`.

Only what an INT8 network of one subgraph needs. `read` takes the file as hostile: every length is compared with the file before
anything is made of it, and whatever is wrong is one ImageError.
"""

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyhtpw.errors import ImageError, MissingToolError

FILE_MAX = 1 << 28
RECORDS_MAX = 4096  # tensors, operators, buffers
IDENTIFIER = b"TFL3"
TYPES = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9}
PADDING = ("SAME", "VALID")
ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")
# operator -> (table of its options, fields, the version of the operator that takes int8)
OPTIONS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "CONV_2D": ("Conv2DOptions", ("Padding", "StrideW", "StrideH", "DilationWFactor", "DilationHFactor", "FusedActivationFunction"), 3),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        ("Padding", "StrideW", "StrideH", "DepthMultiplier", "DilationWFactor", "DilationHFactor", "FusedActivationFunction"),
        3,
    ),
    "AVERAGE_POOL_2D": (
        "Pool2DOptions", ("Padding", "StrideW", "StrideH", "FilterWidth", "FilterHeight", "FusedActivationFunction"), 2),
    "MAX_POOL_2D": ("Pool2DOptions", ("Padding", "StrideW", "StrideH", "FilterWidth", "FilterHeight", "FusedActivationFunction"), 2),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat", "KeepNumDims"), 4),
    "ADD": ("AddOptions", ("FusedActivationFunction",), 2),
    "MUL": ("MulOptions", ("FusedActivationFunction",), 2),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",), 2),
    "MEAN": ("ReducerOptions", ("KeepDims",), 2),
    "CAST": ("CastOptions", ("InDataType", "OutDataType"), 1),
    "GATHER": ("GatherOptions", ("Axis",), 2),
    "BATCH_MATMUL": ("BatchMatMulOptions", ("AdjX", "AdjY"), 2),
    "RESHAPE": ("ReshapeOptions", (), 1),
    "EXPAND_DIMS": ("ExpandDimsOptions", (), 1),
    "SQUEEZE": ("SqueezeOptions", (), 2),
    "SHAPE": ("ShapeOptions", ("OutType",), 1),
    "STRIDED_SLICE": ("StridedSliceOptions", ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask"), 1),
    "PACK": ("PackOptions", ("ValuesCount", "Axis"), 1),
    "QUANTIZE": ("QuantizeOptions", (), 2),
    "DEQUANTIZE": ("DequantizeOptions", (), 2),
    "PAD": ("PadOptions", (), 2),
    "PADV2": ("PadV2Options", (), 2),
    "SLICE": ("SliceOptions", (), 2),
    "MAXIMUM": ("MaximumMinimumOptions", (), 2),
    "MINIMUM": ("MaximumMinimumOptions", (), 2),
}


@dataclass
class Tensor:
    """`data` is None for what is computed; `scales` float32 (1,) or one for each channel along `axis`; zero points likewise."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None
    axis: int = 0

    @property
    def scale(self) -> float:
        """The one scale, as double, as the kernels use it; 0 if there is none."""
        return 0.0 if self.scales is None or not len(self.scales) else float(self.scales[0])

    @property
    def zero(self) -> int:
        """The one zero point."""
        return 0 if self.zero_points is None or not len(self.zero_points) else int(self.zero_points[0])


@dataclass
class Operator:
    """`options` by the schema's names; padding and activation as their names."""

    code: str
    inputs: tuple[int, ...]  # -1: left out
    outputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Network:
    """One subgraph."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    description: str = ""
    metadata: dict[str, bytes] = field(default_factory=dict)


def packages() -> tuple[Any, Any]:
    """The modules `tflite` and `flatbuffers`. Raises MissingToolError with what to type."""
    try:
        import flatbuffers
        import tflite
    except ImportError as error:
        raise MissingToolError(f"TensorFlow Lite files need {error.name}: pip install 'pyhtpw[export]'") from error
    return tflite, flatbuffers


def write(network: Network) -> bytes:
    """The bytes of a .tflite file; the same network gives the same bytes."""
    tflite, flatbuffers = packages()
    b = flatbuffers.Builder(1 << 16)

    def vector(start: Any, values: Any, prepend: Any) -> int:
        values = list(values)
        start(b, len(values))
        for value in reversed(values):
            prepend(value)
        return b.EndVector()

    def table(kind: str, **fields: Any) -> int:
        getattr(tflite, f"{kind}Start")(b)
        for name, value in fields.items():
            if value is not None:
                getattr(tflite, f"{kind}Add{name}")(b, value)
        return getattr(tflite, f"{kind}End")(b)

    def buffer(data: bytes) -> int:
        if not data:
            return table("Buffer")
        b.StartVector(1, len(data), 16)  # CreateByteVector would align to one byte
        b.head = b.Head() - len(data)
        b.Bytes[b.Head() : b.Head() + len(data)] = data
        return table("Buffer", Data=b.EndVector())

    def tensor(t: Tensor, place: int) -> int:
        quantisation = None
        if t.scales is not None:
            scales = vector(tflite.QuantizationParametersStartScaleVector, map(float, t.scales), b.PrependFloat32)
            zeros = vector(tflite.QuantizationParametersStartZeroPointVector, map(int, t.zero_points), b.PrependInt64)
            quantisation = table("QuantizationParameters", Scale=scales, ZeroPoint=zeros, QuantizedDimension=t.axis)
        name = b.CreateString(t.name)
        shape = vector(tflite.TensorStartShapeVector, t.shape, b.PrependInt32)
        return table("Tensor", Shape=shape, Type=TYPES[t.dtype], Buffer=place, Name=name, Quantization=quantisation, HasRank=True)

    blobs, placed, tensors = [b""], {b"": 0}, []  # buffer 0 is empty by convention
    for t in network.tensors:
        data = b"" if t.data is None else np.ascontiguousarray(t.data, np.dtype(t.dtype).newbyteorder("<")).tobytes()
        if data not in placed:
            placed[data] = len(blobs)
            blobs.append(data)
        tensors.append(tensor(t, placed[data]))
    codes = list(dict.fromkeys(op.code for op in network.operators))
    operators = []
    for op in network.operators:
        kind, names, _ = OPTIONS[op.code]
        values = {name: _coded(name, op.options[name]) for name in names if name in op.options}
        options = table(kind, **values)
        reads = vector(tflite.OperatorStartInputsVector, op.inputs, b.PrependInt32)
        makes = vector(tflite.OperatorStartOutputsVector, op.outputs, b.PrependInt32)
        operators.append(table("Operator", OpcodeIndex=codes.index(op.code), Inputs=reads, Outputs=makes,
                               BuiltinOptionsType=getattr(tflite.BuiltinOptions, kind), BuiltinOptions=options))
    graph = table(
        "SubGraph",
        Tensors=vector(tflite.SubGraphStartTensorsVector, tensors, b.PrependUOffsetTRelative),
        Inputs=vector(tflite.SubGraphStartInputsVector, network.inputs, b.PrependInt32),
        Outputs=vector(tflite.SubGraphStartOutputsVector, network.outputs, b.PrependInt32),
        Operators=vector(tflite.SubGraphStartOperatorsVector, operators, b.PrependUOffsetTRelative),
        Name=b.CreateString("main"),
    )
    notes = []
    for name, data in network.metadata.items():
        notes.append(table("Metadata", Name=b.CreateString(name), Buffer=len(blobs)))
        blobs.append(data)
    opcodes = []
    for code in codes:
        number = getattr(tflite.BuiltinOperator, code)
        opcodes.append(table("OperatorCode", DeprecatedBuiltinCode=min(number, 127), BuiltinCode=number, Version=OPTIONS[code][2]))
    buffers = [buffer(data) for data in blobs]
    model = table(
        "Model",
        Version=3,
        OperatorCodes=vector(tflite.ModelStartOperatorCodesVector, opcodes, b.PrependUOffsetTRelative),
        Subgraphs=vector(tflite.ModelStartSubgraphsVector, [graph], b.PrependUOffsetTRelative),
        Description=b.CreateString(network.description),
        Buffers=vector(tflite.ModelStartBuffersVector, buffers, b.PrependUOffsetTRelative),
        Metadata=vector(tflite.ModelStartMetadataVector, notes, b.PrependUOffsetTRelative) if notes else None,
    )
    b.Finish(model, IDENTIFIER)
    return bytes(b.Output())


def _coded(name: str, value: Any) -> Any:
    if name == "Padding":
        return PADDING.index(value)
    if name == "FusedActivationFunction":
        return ACTIVATIONS.index(value)
    return value


def read(data: bytes, name: str = "model") -> Network:
    """A .tflite file as records, which own their memory.

    Raises
    ------
    ImageError
        If the file is damaged, uses more than one subgraph, or is larger than 256 MiB.
    """
    if len(data) > FILE_MAX:
        raise ImageError(f"{name}: {len(data):,} bytes; at most {FILE_MAX:,} are read")
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise ImageError(f"{name}: not a TensorFlow Lite file: bytes 4..7 are not {IDENTIFIER.decode()}")
    tflite, _ = packages()
    try:
        return _Reader(tflite, data, name).network()
    except ImageError:
        raise
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError, MemoryError) as error:
        # what the accessors of flatbuffers raise where an offset leads astray
        raise ImageError(f"{name}: damaged TensorFlow Lite file: {error}") from error


class _Reader:
    def __init__(self, tflite: Any, data: bytes, name: str) -> None:
        self.t, self.data, self.name = tflite, data, name
        self.codes = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
        self.types = {number: dtype for dtype, number in TYPES.items()}

    def _count(self, what: str, count: int, most: int = RECORDS_MAX) -> range:
        if not 0 <= count <= most:
            raise ImageError(f"{self.name}: {count} {what}; at most {most} are read")
        return range(count)

    def _text(self, value: bytes | None) -> str:
        return "" if value is None else value.decode("utf-8", "replace")[:200]

    def network(self) -> Network:
        model = self.t.Model.GetRootAs(self.data, 0)
        if model.SubgraphsLength() != 1:
            raise ImageError(f"{self.name}: {model.SubgraphsLength()} subgraphs; networks of exactly one are read")
        graph = model.Subgraphs(0)
        self._count("buffers", model.BuffersLength())
        self.model = model
        codes = []
        for i in self._count("operator codes", model.OperatorCodesLength()):
            code = model.OperatorCodes(i)
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            codes.append(f"CUSTOM {self._text(custom)}" if custom else self.codes.get(number, f"operator {number}"))
        tensors = [self._tensor(graph.Tensors(i)) for i in self._count("tensors", graph.TensorsLength())]
        operators = [self._operator(graph.Operators(i), codes, len(tensors)) for i in self._count("operators", graph.OperatorsLength())]
        ends = []
        for what in ("Inputs", "Outputs"):
            found = tuple(getattr(graph, what)(i) for i in self._count(what.lower(), getattr(graph, f"{what}Length")(), 64))
            if any(not 0 <= i < len(tensors) for i in found):
                raise ImageError(f"{self.name}: {what.lower()} of the network name a tensor that is not there")
            ends.append(found)
        return Network(tensors, operators, ends[0], ends[1], self._text(model.Description()))

    def _tensor(self, raw: Any) -> Tensor:
        name = self._text(raw.Name())
        shape = tuple(int(raw.Shape(i)) for i in self._count(f"dimensions of tensor {name!r}", raw.ShapeLength(), 8))
        if any(n < 0 or n > 1 << 24 for n in shape) or math.prod(shape) > FILE_MAX:
            raise ImageError(f"{self.name}: tensor {name!r} has the shape {shape}")
        dtype = self.types.get(raw.Type(), f"type {raw.Type()}")
        place = raw.Buffer()
        if not 0 <= place < max(self.model.BuffersLength(), 1):
            raise ImageError(f"{self.name}: tensor {name!r} is in buffer {place}, which is not there")
        data = None
        if place and self.model.Buffers(place).DataLength():
            buffer = self.model.Buffers(place)
            count = buffer.DataLength()
            if dtype not in TYPES:
                raise ImageError(f"{self.name}: constant {name!r} has the {dtype}, which is not read")
            want = math.prod(shape) * np.dtype(dtype).itemsize
            if count != want or count > len(self.data):
                raise ImageError(f"{self.name}: constant {name!r} of shape {shape} has {count} bytes, must be {want}")
            values = buffer.DataAsNumpy()
            if len(values) != count:
                raise ImageError(f"{self.name}: constant {name!r} lies outside of the file")
            data = np.frombuffer(values.tobytes(), np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
        if raw.Sparsity() is not None:
            raise ImageError(f"{self.name}: tensor {name!r} is sparse: convert without sparsity")
        tensor = Tensor(name, shape, dtype, data)
        q = raw.Quantization()
        if q is not None and q.ScaleLength():
            self._count(f"scales of tensor {name!r}", q.ScaleLength(), max(shape, default=1) or 1)
            scales = np.array([q.Scale(i) for i in range(q.ScaleLength())], np.float32)
            if not (np.isfinite(scales).all() and (scales >= 0).all()):
                raise ImageError(f"{self.name}: tensor {name!r} has a scale that is not a number of at least 0")
            zeros = np.zeros(len(scales), np.int64)
            if q.ZeroPointLength():
                self._count(f"zero points of tensor {name!r}", q.ZeroPointLength(), len(scales))
                zeros[:] = [q.ZeroPoint(i) for i in range(q.ZeroPointLength())]
            if not 0 <= q.QuantizedDimension() < max(len(shape), 1):
                raise ImageError(f"{self.name}: tensor {name!r} has scales along dimension {q.QuantizedDimension()} of {len(shape)}")
            tensor.scales, tensor.zero_points, tensor.axis = scales, zeros, q.QuantizedDimension()
        return tensor

    def _operator(self, raw: Any, codes: list[str], tensors: int) -> Operator:
        at = raw.OpcodeIndex()
        if not 0 <= at < len(codes):
            raise ImageError(f"{self.name}: an operator has code {at} of {len(codes)}")
        reads = tuple(raw.Inputs(i) for i in self._count("inputs of an operator", raw.InputsLength(), 64))
        makes = tuple(raw.Outputs(i) for i in self._count("outputs of an operator", raw.OutputsLength(), 64))
        if any(not -1 <= i < tensors for i in reads) or any(not 0 <= i < tensors for i in makes):
            raise ImageError(f"{self.name}: {codes[at]} names a tensor that is not there")
        op, options = Operator(codes[at], reads, makes), raw.BuiltinOptions()
        if op.code in OPTIONS:
            kind, names, _ = OPTIONS[op.code]
            table = getattr(self.t, kind)()
            if options is not None and names:
                if raw.BuiltinOptionsType() != getattr(self.t.BuiltinOptions, kind):
                    raise ImageError(f"{self.name}: {op.code} has the options of another operator")
                table.Init(options.Bytes, options.Pos)
                for name in names:
                    value = getattr(table, name)()
                    if name in ("Padding", "FusedActivationFunction"):
                        known = PADDING if name == "Padding" else ACTIVATIONS
                        value = known[value] if 0 <= value < len(known) else f"{name} {value}"
                    op.options[name] = value
            elif names:
                raise ImageError(f"{self.name}: {op.code} has no options")
        return op
