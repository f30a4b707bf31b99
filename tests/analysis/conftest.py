"""A small net with batch norm and convolutions, with images and labels, in float64."""

import pytest
import torch
from torch import nn


def small_net(seed=0, classes=3):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(64, classes)]
    net = nn.Sequential(*layers).double()
    for p in net.parameters():
        p.data += 0.3 * torch.randn_like(p)  # batch norm's weights too
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def two_nets():
    return [(1, small_net(0)), (5, small_net(1))]


@pytest.fixture
def images():
    return torch.rand(12, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def labels():
    return torch.arange(12) % 3


@pytest.fixture
def figure_text():
    def text(ax):
        """All words of a figure, drawn, so that an error of the plot shows."""
        import io

        ax.figure.savefig(io.BytesIO(), format="png")
        return " ".join([ax.get_xlabel(), ax.get_ylabel(), *ax.get_legend_handles_labels()[1]])

    return text
