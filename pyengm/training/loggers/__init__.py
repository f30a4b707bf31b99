"""Loggers for the metrics of a run: terminal, JSON lines, experiment trackers, and those of users."""

from pyengm.training.loggers.base import Logger
from pyengm.training.loggers.group import Loggers
from pyengm.training.loggers.guarded import Guarded
from pyengm.training.loggers.jsonlines import JsonLines
from pyengm.training.loggers.named import build_logger, logger_factory, logger_name
from pyengm.training.loggers.terminal import Terminal

__all__ = ["Guarded", "JsonLines", "Logger", "Loggers", "Terminal", "build_logger", "logger_factory", "logger_name"]
