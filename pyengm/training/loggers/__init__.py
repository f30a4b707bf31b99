"""Loggers for the metrics of a run: terminal, JSON lines, TensorBoard, and those of users."""

from pyengm.training.loggers.base import Logger
from pyengm.training.loggers.group import Loggers
from pyengm.training.loggers.jsonlines import JsonLines
from pyengm.training.loggers.named import build_logger, check_logger_name, logger_factory
from pyengm.training.loggers.terminal import Terminal

__all__ = ["JsonLines", "Logger", "Loggers", "Terminal", "build_logger", "check_logger_name", "logger_factory"]
