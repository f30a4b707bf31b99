"""Analyses that are interrupted at any part go on to the same arrays."""

from dataclasses import asdict

import numpy as np
import pytest

from pyengm.analysis import (
    Parts,
    SavedParts,
    accuracy_curve,
    fosc_distribution,
    gradient_statistics,
    hessian_top,
    norm_correlation,
    smoothness,
    weight_plane,
)
from pyengm.attacks import FGSM, ThreatModel

THREAT = ThreatModel("linf", 0.1)
ANALYSES = {
    "gradient_statistics": lambda net, *data, **o: gradient_statistics(net, *data, attack=FGSM(0.1), batch_size=5, **o),
    "norm_correlation": lambda net, *data, **o: norm_correlation(net, *data, batch_size=6, **o),
    "fosc_distribution": lambda net, *data, **o: fosc_distribution([(1, net), (2, net)], *data, THREAT, steps=2, **o),
    "hessian_top": lambda net, *data, **o: hessian_top(net, *data, k=2, **o),
    "weight_plane": lambda net, *data, **o: weight_plane(net, *data, attack=None, dims=1, resolution=3, **o),
    "smoothness": lambda net, *data, **o: smoothness(net, *data, [None, THREAT], steps=2, directions=2, **o),
    "accuracy_curve": lambda net, *data, **o: accuracy_curve(net, *data, THREAT, [0.0, 0.1], steps=2, **o),
}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ANALYSES)
def test_an_interrupted_analysis_gives_the_same_arrays(name, net, images, labels, tmp_path):
    seen = []
    whole = ANALYSES[name](net, images, labels, parts=Parts(lambda *part: seen.append(part)))
    assert len(seen) > 1
    for stop in sorted({1, len(seen) // 2, len(seen) - 1}):
        folder = tmp_path / str(stop)
        count = 0

        def stop_there(*part, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise Killed

        with pytest.raises(Killed):
            ANALYSES[name](net, images, labels, parts=SavedParts(folder, stop_there))
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert len(before) == stop
        resumed = ANALYSES[name](net, images, labels, parts=SavedParts(folder))
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # not computed again
        for key, value in asdict(whole).items():
            np.testing.assert_array_equal(value, asdict(resumed)[key], err_msg=key)
