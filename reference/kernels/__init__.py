"""The kernels, one module each: slow, exact, and without any knowledge of the C library.

All tensors are numpy arrays in NHWC order; a 1-D signal has H = 1. Arithmetic is int64, so that a
value which would wrap in int32 is seen and refused (``KernelOverflowError``). ``_s8`` kernels
take int8 weights, ``_s4`` kernels packed int4 weights.
"""

from .activations import clamp_s8, relu6_s8, relu_s8, table_s8
from .bits import pack, pack_s4, packed_length, unpack, unpack_s4
from .checks import KernelArgumentError, KernelOverflowError
from .conv import conv_s4, conv_s8
from .conv1x1 import conv1x1_s4, conv1x1_s8
from .depthwise import depthwise_s4, depthwise_s8
from .elementwise import add_s8, mul_s8
from .fully_connected import fully_connected_s4, fully_connected_s8
from .pooling import avgpool_s8, maxpool_s8
from .requantise import requantise
from .softmax import softmax_s8

__all__ = [
    "KernelArgumentError",
    "KernelOverflowError",
    "add_s8",
    "avgpool_s8",
    "clamp_s8",
    "conv1x1_s4",
    "conv1x1_s8",
    "conv_s4",
    "conv_s8",
    "depthwise_s4",
    "depthwise_s8",
    "fully_connected_s4",
    "fully_connected_s8",
    "maxpool_s8",
    "mul_s8",
    "pack",
    "pack_s4",
    "packed_length",
    "relu6_s8",
    "relu_s8",
    "requantise",
    "softmax_s8",
    "table_s8",
    "unpack",
    "unpack_s4",
]
