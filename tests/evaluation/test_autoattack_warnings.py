"""The warnings of AutoAttack's package become records."""

import logging

import pyautoattack.checks
import pytest
import torch
from helpers.evaluation import CPU, LINF, data_for, network
from torch import nn

from pyengm.attacks import AutoAttack
from pyengm.evaluation import evaluate, run_autoattack
from pyengm.evaluation.autoattack_warnings import LOGGER, recorded_messages, square_warnings, warnings_of


class Softmax(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.net, self.temperature = network(), temperature

    def forward(self, x):
        return (self.net(x) / self.temperature).softmax(dim=1)


def dynamic(x):
    with torch.enable_grad():
        x = x.requires_grad_()
        return x - torch.autograd.grad(x.sum(), x)[0]


def test_the_package_s_messages_are_told_apart():
    logger, checks = logging.getLogger(LOGGER), pyautoattack.checks
    x, y = torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)
    with recorded_messages() as messages:
        checks.check_randomized(lambda x: x + torch.rand_like(x), x, y, logger=logger)
        checks.check_range_output(lambda x: x.softmax(dim=1), x, logger=logger)
        checks.check_zero_gradients(torch.zeros(3, 4), logger=logger)
        checks.check_zero_gradients(torch.zeros(12, 4), logger=logger)
        checks.check_dynamic(dynamic, x, logger=logger)
    found = {warning.kind: warning.text for warning in warnings_of(messages)}
    assert list(found) == ["randomized", "softmax_output", "zero_gradients", "dynamic"]
    assert "12 images" in found["zero_gradients"]
    assert [warning.kind for warning in warnings_of(["something new"])] == ["other"]


def test_square_that_finds_more_than_the_gradients():
    (warning,) = square_warnings({"natural": 0.9, "apgd-ce": 0.6, "fab-t": 0.5, "square": 0.4}, 100)
    assert warning.kind == "square"
    assert "from 50.0 to 40.0 %" in warning.text


@pytest.mark.parametrize("square", [0.5, 0.499, 0.48])
def test_square_that_finds_what_may_be_chance(square):
    assert not square_warnings({"natural": 0.9, "fab-t": 0.5, "square": square}, 100)
    assert not square_warnings({"natural": 0.9, "square": square}, 100)  # it is alone


def test_messages_are_recorded_and_not_printed(capfd):
    logger = logging.getLogger(LOGGER)
    with recorded_messages() as messages:
        logger.warning("one")
        logger.warning("one")
        logger.info("two")
    assert messages == ["one"]
    assert capfd.readouterr() == ("", "")
    assert logger.filters == []


def test_a_resumed_run_has_the_warnings_of_its_beginning(tmp_path):
    model = Softmax(1e-3).eval()
    attack, data = AutoAttack(LINF.eps, attacks="apgd-t"), data_for(network())
    first = run_autoattack(attack, model, data, device=CPU, state=tmp_path)
    kinds = {warning.kind for warning in warnings_of(first.messages)}
    assert kinds == {"softmax_output", "zero_gradients"}
    again = run_autoattack(attack, model, data, device=CPU, state=tmp_path)
    assert set(again.messages) == set(first.messages)


def test_evaluate_gives_python_warnings():
    model = Softmax(1.0).eval()
    with pytest.warns(UserWarning, match=r"APGD-CE \(L-infinity, eps = 0.1\): the outputs are probabilities"):
        evaluate(model, data_for(network()), attacks=["apgd_ce"], threat=LINF, device=CPU)
