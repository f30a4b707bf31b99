"""pytest plugin: tests that seed torch get other numbers in every run: pytest -p fresh_seed --fresh-seed N.

torch.manual_seed and the manual_seed of torch.Generator add N to the seed they are given, so fixed seeds of tests stay
distinct, and a run is repeated by its N. Philox numbers, which the tests compare bit by bit, do not change.
"""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fresh-seed", type=int, default=0, help="added to every seed that a test gives torch")


def pytest_configure(config: pytest.Config) -> None:
    fresh = config.getoption("--fresh-seed")
    manual_seed = torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + fresh)

    torch.Generator = Generator
    torch.manual_seed = lambda seed: manual_seed(seed + fresh)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fresh seed: {config.getoption('--fresh-seed')}"
