"""pytest plugin with which tests draw other random values in every run: pytest -p tools.fresh_seed --fresh-seed N.

torch.manual_seed and torch.Generator.manual_seed add N to their seed: the fixed seeds of tests stay distinct, and the
same N repeats a run. Philox values, which the tests compare bit by bit, do not change.
"""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fresh-seed", type=int, default=0, help="added to every seed that a test passes to torch")


def pytest_configure(config: pytest.Config) -> None:
    fresh = int(config.getoption("--fresh-seed") or 0)
    manual_seed = torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + fresh)

    torch.Generator = Generator
    torch.manual_seed = lambda seed: manual_seed(seed + fresh)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fresh seed: {config.getoption('--fresh-seed')}"
