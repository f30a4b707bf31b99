"""Layouts of rows: what they keep on a device."""

import gc
import weakref

import numpy as np
import pytest
import torch

from pyengm.pergrad.row_layout import RowLayout


@pytest.mark.parametrize("capturing", [False, True])
def test_a_graph_keeps_the_order_that_it_reads(capturing, monkeypatch):
    """It reads the memory of the order, also once the proof that had the layout was dropped."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    layout = RowLayout.of(np.array([0, 0, 1, 2, 2, 2]), 3)
    assert layout.split(torch.arange(6.0)).tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]
    order = weakref.ref(layout.order)
    del layout
    gc.collect()
    assert (order() is not None) == capturing
