"""Only what pyproject.toml cannot say: the cffi extension, one wheel for all versions of Python, and the C sources inside it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSources(build_py):
    """Wheels hold `csrc/` as `pyhtpw/csrc/`: `pyhtpw.target` compiles it for microcontrollers, and firmware may take it from there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(Path(__file__).parent / "csrc", Path(self.build_lib, "pyhtpw/csrc"), dirs_exist_ok=True)


setup(
    cffi_modules=["pyhtpw/_native_build.py:ffibuilder"],
    cmdclass={"build_py": BuildWithSources},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # the extension keeps to CPython's stable ABI
)
