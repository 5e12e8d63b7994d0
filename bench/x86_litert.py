"""LiteRT (XNNPACK) beside the x86 backends: models of pointwise int8 convolutions, and seconds per operator.

Needs `ai-edge-litert` and `tflite` (the schema), which pyhtpw itself never uses.
"""

import time

import flatbuffers
import numpy as np
import tflite
from ai_edge_litert.interpreter import Interpreter

COPIES = 9  # operators of the larger of two models; their difference has no cost of a call in it


class _Model:
    """A TFLite file under construction."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1 << 16)
        self.buffers: list[int] = []
        self.tensors: list[int] = []
        self.buffer(None)  # buffer 0 is the empty one

    def vector(self, start, items: list[int]) -> int:
        start(self.builder, len(items))
        for item in reversed(items):
            self.builder.PrependUOffsetTRelative(item)
        return self.builder.EndVector()

    def ints(self, values) -> int:
        return self.builder.CreateNumpyVector(np.array(values, np.int32))

    def buffer(self, data: bytes | None) -> int:
        b, content = self.builder, None if data is None else self.builder.CreateByteVector(data)
        tflite.BufferStart(b)
        if content is not None:
            tflite.BufferAddData(b, content)
        self.buffers.append(tflite.BufferEnd(b))
        return len(self.buffers) - 1

    def tensor(self, shape, kind: int, buffer: int, scales, zero_point: int = 0) -> int:
        b = self.builder
        name, dims = b.CreateString(f"t{len(self.tensors)}"), self.ints(shape)
        scale = b.CreateNumpyVector(np.array(scales, np.float32))
        zero = b.CreateNumpyVector(np.full(len(scales), zero_point, np.int64))
        tflite.QuantizationParametersStart(b)
        tflite.QuantizationParametersAddScale(b, scale)
        tflite.QuantizationParametersAddZeroPoint(b, zero)
        quantisation = tflite.QuantizationParametersEnd(b)
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, dims)
        tflite.TensorAddType(b, kind)
        tflite.TensorAddBuffer(b, buffer)
        tflite.TensorAddName(b, name)
        tflite.TensorAddQuantization(b, quantisation)
        self.tensors.append(tflite.TensorEnd(b))
        return len(self.tensors) - 1

    def conv(self, inputs: list[int], output: int) -> int:
        b = self.builder
        tflite.Conv2DOptionsStart(b)
        tflite.Conv2DOptionsAddPadding(b, tflite.Padding.VALID)
        tflite.Conv2DOptionsAddStrideW(b, 1)
        tflite.Conv2DOptionsAddStrideH(b, 1)
        options, ins, outs = tflite.Conv2DOptionsEnd(b), self.ints(inputs), self.ints([output])
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, 0)
        tflite.OperatorAddInputs(b, ins)
        tflite.OperatorAddOutputs(b, outs)
        tflite.OperatorAddBuiltinOptionsType(b, tflite.BuiltinOptions.Conv2DOptions)
        tflite.OperatorAddBuiltinOptions(b, options)
        return tflite.OperatorEnd(b)

    def finish(self, operators: list[int], inputs: list[int], outputs: list[int]) -> bytes:
        b = self.builder
        tensors = self.vector(tflite.SubGraphStartTensorsVector, self.tensors)
        operators = self.vector(tflite.SubGraphStartOperatorsVector, operators)
        ins, outs = self.ints(inputs), self.ints(outputs)
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensors)
        tflite.SubGraphAddInputs(b, ins)
        tflite.SubGraphAddOutputs(b, outs)
        tflite.SubGraphAddOperators(b, operators)
        graph = tflite.SubGraphEnd(b)
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, tflite.BuiltinOperator.CONV_2D)
        tflite.OperatorCodeAddBuiltinCode(b, tflite.BuiltinOperator.CONV_2D)
        tflite.OperatorCodeAddVersion(b, 3)
        codes = self.vector(tflite.ModelStartOperatorCodesVector, [tflite.OperatorCodeEnd(b)])
        graphs = self.vector(tflite.ModelStartSubgraphsVector, [graph])
        buffers = self.vector(tflite.ModelStartBuffersVector, self.buffers)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, codes)
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddBuffers(b, buffers)
        b.Finish(tflite.ModelEnd(b), b"TFL3")
        return bytes(b.Output())


def model(rows: int, in_c: int, out_c: int, copies: int) -> bytes:
    """`copies` pointwise convolutions of one input, per-channel scales, int8, each with weights of its own."""
    rng, m, int8, int32 = np.random.default_rng(0), _Model(), tflite.TensorType.INT8, tflite.TensorType.INT32
    x = m.tensor([1, 1, rows, in_c], int8, 0, [0.05], -3)
    operators, outputs = [], []
    for _ in range(copies):
        scales = 0.01 * (1 + rng.random(out_c))
        w = m.buffer(rng.integers(-127, 128, (out_c, 1, 1, in_c), np.int8).tobytes())
        bias = m.buffer(rng.integers(-3000, 3000, out_c).astype(np.int32).tobytes())
        inputs = [x, m.tensor([out_c, 1, 1, in_c], int8, w, scales), m.tensor([out_c], int32, bias, scales * 0.05)]
        outputs.append(m.tensor([1, 1, rows, out_c], int8, 0, [0.5], 4))
        operators.append(m.conv(inputs, outputs[-1]))
    return m.finish(operators, [x], outputs)


class Pointwise:
    """The one-operator model and the one of COPIES operators, on one thread."""

    def __init__(self, rows: int, in_c: int, out_c: int) -> None:
        self.interpreters = []
        for copies in (1, COPIES):
            interpreter = Interpreter(model_content=model(rows, in_c, out_c, copies), num_threads=1)
            interpreter.allocate_tensors()
            x = np.random.default_rng(1).integers(-128, 128, (1, 1, rows, in_c), np.int8)
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
            interpreter.invoke()
            self.interpreters.append(interpreter)

    def seconds(self, calls: int) -> tuple[float, float]:
        """Seconds per call of the one-operator and of the larger model."""
        times = []
        for interpreter in self.interpreters:
            start = time.perf_counter()
            for _ in range(calls):
                interpreter.invoke()
            times.append((time.perf_counter() - start) / calls)
        return times[0], times[1]
