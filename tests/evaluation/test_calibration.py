"""Expected calibration error."""

import pytest
import torch

from pyengm.evaluation import expected_calibration_error


def ece_bin_by_bin(confidence, correct, bins):
    """Guo et al. 2017, Eq. 3, as printed."""
    total = 0.0
    for b in range(1, bins + 1):
        members = [i for i, p in enumerate(confidence.tolist()) if (b - 1) / bins < p <= b / bins]
        if members:
            right = sum(correct[i].item() for i in members) / len(members)
            sure = sum(confidence[i].item() for i in members) / len(members)
            total += len(members) / len(confidence) * abs(right - sure)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("n", [1, 7, 500])
def test_calibration_error_is_that_of_the_formula(n, bins):
    generator = torch.Generator().manual_seed(n)
    confidence, right = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.7
    expected = ece_bin_by_bin(confidence, right, bins)
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_a_few():
    right = torch.tensor([True, True, True, False])
    assert expected_calibration_error(torch.full((4,), 0.75), right) == 0
    assert expected_calibration_error(torch.ones(4), right) == 0.25
    edges = torch.tensor([0.5, 0.5, 0.75, 1.0], dtype=torch.float64)  # the first two belong to the lower half
    assert expected_calibration_error(edges, right, bins=2) == pytest.approx((1.0 + 0.75) / 4)
    assert expected_calibration_error(torch.zeros(2), torch.zeros(2, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [
        (torch.rand(3), torch.ones(2).bool(), r"got shapes \(3,\) and \(2,\)"),
        (torch.rand(3, 2), torch.ones(3, 2).bool(), "N >= 1 examples"),
        (torch.rand(0), torch.ones(0).bool(), "N >= 1 examples"),
        (torch.tensor([0.2, 3.0]), torch.ones(2).bool(), "from 0 to 1; give probabilities"),
        (torch.tensor([0.2, torch.nan]), torch.ones(2).bool(), "from 0 to 1"),
    ],
)
def test_calibration_error_of_other_things(confidence, right, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(confidence, right)
