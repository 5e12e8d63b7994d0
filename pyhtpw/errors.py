"""Every exception that pyhtpw raises on purpose.

Each message is one line that names the thing that is wrong and the remedy. The command line prints it and exits with
status 2; nothing has been half-written by then.
"""


class HtpwError(Exception):
    """Base of all errors of this package."""


class DataError(HtpwError, ValueError):
    """A data set, record or window is missing, partial or malformed."""


class SealedError(HtpwError, RuntimeError):
    """Test labels were asked for before the run's choices were frozen, or for something else than was frozen."""


class ConfigError(HtpwError, ValueError):
    """An option or a combination of options makes no sense."""


class TrainError(HtpwError, RuntimeError):
    """Training cannot go on (divergence, or a checkpoint that does not fit)."""


class KernelError(HtpwError, ValueError):
    """An argument of a kernel has the wrong type, shape or range, or could overflow an accumulator."""


class QuantiseError(HtpwError, ValueError):
    """A float model cannot be expressed in integers within the format's bounds."""


class ImageError(HtpwError, ValueError):
    """An image is malformed, damaged or does not fit; `code` is the C library's error code, 0 if Python found it."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ExportError(HtpwError, ValueError):
    """A model cannot be said exactly in another format, or holds what this one has no operator for."""


class SignatureError(HtpwError, ValueError):
    """A signature is not that of the file and the key."""


class ToolError(HtpwError, RuntimeError):
    """A compiler, emulator or other tool is missing or failed."""


class MissingToolError(ToolError):
    """A tool is not installed; what needs it is reported as NOT RUN, with what to type."""


class VerifyError(HtpwError, AssertionError):
    """Two tellings of the same arithmetic differ."""
