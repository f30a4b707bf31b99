"""Images as text for a page."""

import base64
import io

from PIL import Image
from torch import Tensor


def png_data_uri(image: Tensor) -> str:
    """The data URI of a PNG file.

    Args:
        image: (C, H, W) pixels, clipped to [0, 1]; of 3 channels, or else the first alone as a grey image.
    """
    pixels = (255 * image.double().clamp(0, 1)).round().byte()
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
