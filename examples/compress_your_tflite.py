"""Compress your own .tflite network: import, compress, check, and out again.

    python examples/compress_your_tflite.py [model.tflite [windows.npy [budget]]]

Without arguments it makes itself a small INT8 network of random weights and random windows (synthetic: agreement is all that means
anything). With yours: an INT8 classifier, and int8 training windows (N, H, W, C) as its input takes them. Needs the extra `export`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import pyhtpw
from pyhtpw.export import interpreter, schema
from pyhtpw.export.compress import compress
from pyhtpw.export.from_tflite import compare, from_tflite
from pyhtpw.export.tflite import to_tflite
from pyhtpw.image import write


def synthetic_network(seed: int = 0) -> bytes:
    """A DS-CNN-like INT8 .tflite file whose 1x1 kernels lie near few directions, as trained ones do."""
    rng = np.random.default_rng(seed)
    tensors, operators = [], []

    def tensor(name, shape, dtype="int8", data=None, scales=(0.02,), zero=0, axis=0):
        scales = None if scales is None else np.array(scales, np.float32)
        zeros = None if scales is None else np.full(len(scales), zero)
        tensors.append(schema.Tensor(name, shape, dtype, data, scales, zeros, axis))
        return len(tensors) - 1

    def convolution(x, name, weights, size, depthwise=False, stride=1):
        channels, axis = (weights.shape[3], 3) if depthwise else (len(weights), 0)
        spread = np.sqrt(weights.size / channels) * weights.std() * 60
        scales = rng.uniform(0.8, 1.2, channels) * 60 / spread
        inputs = (x, tensor(f"{name}/w", weights.shape, "int8", weights, scales, 0, axis),
                  tensor(f"{name}/b", (channels,), "int32", rng.integers(-500, 500, channels).astype(np.int32), None))
        out = tensor(name, (1, *size, channels), zero=-128 if name != "logits" else 0)
        options = {"Padding": "SAME", "StrideW": stride, "StrideH": stride, "DilationWFactor": 1, "DilationHFactor": 1,
                   "FusedActivationFunction": "RELU" if name != "logits" else "NONE"}
        if depthwise:
            options["DepthMultiplier"] = 1
        operators.append(schema.Operator("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", inputs, (out,), options))
        return out

    def kernel(*shape):
        return rng.integers(-127, 128, shape).astype(np.int8)

    def pointwise(out_c, in_c, directions=4, tile=16):
        tiles = rng.normal(size=(out_c * in_c // tile, directions)) @ rng.normal(size=(directions, tile))
        tiles += 0.1 * rng.normal(size=tiles.shape)
        return np.clip(np.rint(40 * tiles / tiles.std()), -127, 127).astype(np.int8).reshape(out_c, 1, 1, in_c)

    x = tensor("audio", (1, 25, 10, 1))
    inputs = (x,)
    x = convolution(x, "stem", kernel(64, 10, 4, 1), (13, 5), stride=2)
    for i in range(3):
        x = convolution(x, f"depthwise{i}", kernel(1, 3, 3, 64), (13, 5), depthwise=True)
        x = convolution(x, f"pointwise{i}", pointwise(64, 64), (13, 5))
    mean = tensor("mean", (1, 1, 1, 64), zero=-128)
    pool = {"Padding": "VALID", "StrideW": 5, "StrideH": 13, "FilterWidth": 5, "FilterHeight": 13, "FusedActivationFunction": "NONE"}
    operators.append(schema.Operator("AVERAGE_POOL_2D", (x,), (mean,), pool))
    logits = convolution(mean, "logits", kernel(12, 1, 1, 64), (1, 1))
    return schema.write(schema.Network(tensors, operators, inputs, (logits,), "synthetic"))


def main(arguments: list[str]) -> int:
    rng = np.random.default_rng(1)
    data = Path(arguments[0]).read_bytes() if arguments else synthetic_network()
    imported = from_tflite(data)
    image = pyhtpw.Image(write(imported.model), "imported")
    t = image.parsed.input
    if len(arguments) > 1:
        windows = np.load(arguments[1]).astype(np.int8).reshape(-1, t.h, t.w, t.c)
    else:
        windows = np.clip(rng.normal(0, 50, (128, t.h, t.w, t.c)), -128, 127).astype(np.int8)
        print("windows: random noise, which stands for no data")
    found = compare(imported, image, windows[:64])
    print(f"imported: {len(image.data):,} bytes; {found['differing']} of {found['logits']} logits differ from TensorFlow Lite's reference")

    budget = int(arguments[2]) if len(arguments) > 2 else int(0.55 * len(image.data))
    small = compress(image, budget, windows, evaluations=8)
    for name, error in small.errors.items():
        print(f"  {name:>10}: {small.sources[name]}, kernel error {error:.3f}")
    print(f"compressed: {len(small.image.data):,} bytes of {budget:,}; same class on {100 * small.agreement:.0f} % of held-out windows")

    out = Path(tempfile.mkdtemp()) / "small.tflite"
    out.write_bytes(to_tflite(small.image))
    again = interpreter.run(schema.read(out.read_bytes()), windows[:64])
    differing = int(np.count_nonzero(again != small.image.run_batch(windows[:64])))
    print(f"expanded again to {out}: {differing} differing logits")
    return int(differing != 0)  # 0: every logit is equal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
