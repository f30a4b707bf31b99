"""Images to evaluate, from tensors, loaders and data sets of torch."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyengm.data import ImageDataset, Loader, as_dataset, load, to_float
from pyengm.errors import DataError


def arrays(n=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 6, 4), generator=generator).to(torch.uint8), torch.arange(n) % 4


def pixels(data):
    return next(Loader(data, 64, device="cpu", seed=0, augment="none", shuffle=False).epoch(0)).x


class Pairs(Dataset):
    classes = ("a", "b", "c", "d", "e")

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i]), "more"


FORMS = {
    "tensors": lambda x, y: (x, y),
    "floats": lambda x, y: (to_float(x), y),
    "arrays": lambda x, y: [x.numpy(), y.numpy().astype(np.int32)],
    "loader": lambda x, y: DataLoader(TensorDataset(to_float(x), y), batch_size=3),
    "data set": lambda x, y: TensorDataset(to_float(x), y),
    "items of three": lambda x, y: Pairs(to_float(x), y),
    "ours": lambda x, y: ImageDataset(x, y, tuple("abcd"), "ours", "test"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(form):
    x, y = arrays()
    data = as_dataset(form(x, y))
    assert data.images.equal(x)
    assert data.labels.equal(y)
    assert pixels(data).equal(to_float(x))


def test_names_and_folders(tmp_path):
    assert as_dataset("digits").labels.equal(load("digits", "test").labels)
    with pytest.raises(DataError, match="unknown data set"):
        as_dataset(tmp_path / "none")
    with pytest.raises(DataError, match="image_size resizes the images of folders only"):
        as_dataset(arrays(), image_size=8)


def test_classes():
    x, y = arrays()
    assert as_dataset((x, y)).classes == tuple("0123")
    assert as_dataset((x, y), num_classes=6).num_classes == 6
    assert as_dataset((x, y), num_classes=2).num_classes == 4
    assert as_dataset(Pairs(x, y)).classes == Pairs.classes
    assert as_dataset(DataLoader(Pairs(x, y))).classes == Pairs.classes


def test_values_between_those_of_8_bits_stay():
    x, y = arrays()
    between = to_float(x) * 0.7 + 0.1
    data = as_dataset((between, y))
    assert data.images.dtype == torch.float32
    assert pixels(data).equal(between)
    order = torch.tensor([3, 1])
    assert pixels(data.subset(order)).equal(between[order])
    on_disk = Loader(data, 4, device="cpu", seed=0, augment="none", shuffle=False, resident=False)
    assert torch.cat([batch.x for batch in on_disk.epoch(0)]).equal(between)
    last = Loader(data, 4, device="cpu", seed=0, augment="none", shuffle=False, memory_format=torch.channels_last)
    assert next(last.epoch(0)).x.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(DataError, match="augmentation is for uint8 images"):
        Loader(data, 4, device="cpu", seed=0, augment="shift", shuffle=True)
    # A batch of multiples of 1/255 beside one of other values.
    mixed = as_dataset(DataLoader(TensorDataset(torch.cat([to_float(x), between]), torch.cat([y, y])), batch_size=10))
    assert pixels(mixed).equal(torch.cat([to_float(x), between]))


def test_rounding_errors_are_clipped_with_a_warning():
    x, y = arrays()
    x[0, 0, 0, 0] = 255
    with pytest.warns(UserWarning, match="by a rounding error are clipped"):
        data = as_dataset((to_float(x) + 2**-22, y))
    assert data.images.max() == 1


WRONG = {
    "a number": (lambda x, y: 3, "expected the name of a data set, a folder, .* got int"),
    "images alone": (lambda x, y: x, "got Tensor"),
    "normalised": (lambda x, y: (to_float(x) * 4 - 2, y), r"values from -2 to 2: leave out Normalize, .*mean="),
    "of 255": (lambda x, y: (x.float(), y), "values from 0 to 255.*divide by 255"),
    "nan": (lambda x, y: (to_float(x) * torch.nan, y), "values from nan"),
    "one image": (lambda x, y: (x[0], y), r"shape \(N, C, H, W\), got \(3, 6, 4\)"),
    "other labels": (lambda x, y: (x, y[1:]), "one label for each of 10 images"),
    "soft labels": (lambda x, y: (x, y.float()), "whole numbers, got torch.float32"),
    "negative labels": (lambda x, y: (x, y - 1), "labels from 0 to 2 .*, got -1"),
    "empty": (lambda x, y: (x[:0], y[:0]), "none of them 0"),
    "a loader of images": (lambda x, y: DataLoader(x), r"expected \(images, labels\) from the data, got Tensor"),
    "an empty loader": (lambda x, y: DataLoader(TensorDataset(x[:0], y[:0])), "hold no images"),
    "no tensors": (lambda x, y: Pairs(["a"] * 10, y), r"the image a tensor, got a tuple of str, int, str; .*ToTensor"),
    "sizes": (lambda x, y: Pairs([x[0], x[1, :, :3]] * 5, y), r"images of one size, got \(3, 3, 4\) and \(3, 6, 4\)"),
}


@pytest.mark.parametrize(("form", "says"), WRONG.values(), ids=WRONG)
def test_other_data_are_refused(form, says):
    with pytest.raises(DataError, match=says):
        as_dataset(form(*arrays()))
