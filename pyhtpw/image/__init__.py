"""The .htpw image: integer model -> bytes (`writer`), bytes -> parts (`reader`), and what every byte is for (`bill`)."""

from pyhtpw.image.bill import bill
from pyhtpw.image.reader import parse
from pyhtpw.image.writer import write

__all__ = ["bill", "parse", "write"]
