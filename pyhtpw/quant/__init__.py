"""Float model -> integer model: calibrated activation ranges, integer kernels, generators and heads, compact
multipliers."""

from pyhtpw.quant.quantise import quantise

__all__ = ["quantise"]
