"""Float model -> integer model: calibrated activation ranges, int8 weights, integer generator, 16-bit multipliers."""

from pyhtpw.quant.quantise import quantise

__all__ = ["quantise"]
