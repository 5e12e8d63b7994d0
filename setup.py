"""Only what pyproject.toml cannot say: the cffi extension."""

from setuptools import setup

setup(cffi_modules=["pyhtpw/_native_build.py:ffibuilder"])
