"""The .htpw image: integer model -> bytes (`writer`), bytes -> parts (`reader`), and what every byte is for (`bill`)."""

from pyhtpw.image.bill import bill
from pyhtpw.image.reader import parse, read_model
from pyhtpw.image.writer import write

__all__ = ["bill", "parse", "read_model", "write"]
