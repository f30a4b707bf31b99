"""Models as programs of torch.export and ONNX."""

import pytest
import torch

from pyengm.models import build

MODELS = {
    "cnn4": {"width": 4, "image_size": 8, "in_channels": 1, "mean": (0.5,), "std": (0.25,)},
    "resnet18": {"width": 8},
    "preact_resnet18": {"width": 8, "norm_layer": "gn"},
    "vgg8": {"width": 8},
    "torchvision:resnet18": {},
    "timm:vit_tiny_patch16_224": {},
}
every_model = pytest.mark.parametrize("name", MODELS)
BATCH = ({0: torch.export.Dim("batch")},)


def model_and_images(name):
    torch.manual_seed(0)
    options = MODELS[name]
    model = build(name, **options).eval()
    side = options.get("image_size", 32)
    return model, *(torch.rand(n, options.get("in_channels", 3), side, side) for n in (3, 5))


@every_model
def test_torch_export(name):
    model, x, y = model_and_images(name)
    program = torch.export.export(model, (x,), dynamic_shapes=BATCH)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-5, atol=1e-5)


@every_model
@pytest.mark.slow
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, y = model_and_images(name)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=BATCH, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(y).detach(), rtol=1e-4, atol=1e-5)
