"""Training steps: eager, with a closure, or captured in CUDA graphs, behind one protocol."""

from pyengm.training.steps.base import Step, StepStats
from pyengm.training.steps.build import build_runner, build_step

__all__ = ["Step", "StepStats", "build_runner", "build_step"]
