"""Images as data URIs."""

import base64
import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from pyengm.report.png import png_data_uri


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels(channels):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    uri = png_data_uri(pixels / 255)
    assert uri == png_data_uri(pixels / 255)
    kind, _, text = uri.partition(",")
    assert kind == "data:image/png;base64"
    assert pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(text)))).equal(pixels)


def test_values_are_clipped():
    assert png_data_uri(torch.full((1, 2, 2), 7.0)) == png_data_uri(torch.ones(1, 2, 2))
