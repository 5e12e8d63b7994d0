"""Training on the CPU: Numba kernels, explicit gradients, results that repeat to the byte."""

from pyhtpw.train.model import Model, check_params
from pyhtpw.train.objective import Objective
from pyhtpw.train.trainer import TrainConfig, TrainResult, train

__all__ = ["Model", "Objective", "TrainConfig", "TrainResult", "check_params", "train"]
