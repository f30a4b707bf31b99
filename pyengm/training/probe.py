"""The probe: gradients of fixed training images at the end of an epoch, for every optimiser."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.attacks.model_state import running_statistics_kept
from pyengm.data import Batch, ImageDataset, Loader
from pyengm.models import memory_format_of
from pyengm.ops import Key
from pyengm.pergrad import NormEstimator, check_losses
from pyengm.pergrad.exact import exact_squares
from pyengm.pergrad.validation import named_params
from pyengm.training.builders import TrainComponents, local_batch_size
from pyengm.training.config import TrainConfig
from pyengm.utils.distributed import all_reduce_sum, all_reduce_sum_many, rank, world_size

EXACT = 16  # images with exact norms, which correct the estimates of the others; a backward pass of a batch each
STEPS = 10


@dataclass(frozen=True)
class ProbeResult:
    """Gradients g_i of the losses of N images, each of the whole batch that an image was in.

    Where norms are estimates, their mean and mean square are corrected by the mean errors at the exact ones (a
    difference estimate, without bias over the choice of these).

    Attributes:
        index: (N,) int64, positions of the images in the training split.
        norms: (N,) float64, |g_i| over all parameters jointly.
        exact: (N,) bool, which of the norms are exact; the others are estimates.
        input_norms: (N,) float64, the norm of the gradient in image i of the sum of the losses.
        mu: E|g_i|, the mean of the norms.
        mu_error: Its standard error, 0 where all norms are exact.
        sigma2: E|g_i|^2 - |E g_i|^2, the variance of the gradients, which is E|g_i - E g_i|^2. |E g_i| is exact.
        sigma2_error: Its standard error, 0 where all norms are exact.

    References:
        Dabouei et al. 2022, Fig. 2 and Table 5; Cochran 1977, "Sampling Techniques", Sec. 7.9, for the difference
        estimate.
    """

    index: np.ndarray
    norms: np.ndarray
    exact: np.ndarray
    input_norms: np.ndarray
    mu: float
    mu_error: float
    sigma2: float
    sigma2_error: float

    def metrics(self) -> dict[str, float]:
        """What goes into metrics.jsonl."""
        return {f"probe_{name}": getattr(self, name) for name in ("mu", "mu_error", "sigma2", "sigma2_error")}

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name."""
        return {name: np.asarray(value) for name, value in vars(self).items()}


def measure_probe(config: TrainConfig, components: TrainComponents, data: ImageDataset) -> ProbeResult:
    """Measures the gradients of the images under the present weights; all processes of a run call this.

    The losses are those of PGD-10 with steps of eps / 4, from the same random start in all epochs, whatever attack the
    run trains with; those of the images themselves in natural training. The model is in training mode: batch norm has
    the statistics of a batch, as large as those that this process trains on, and its running ones stay as they are.
    Under batch norm the norms are estimates, but for those of 16 images, spread evenly. The run's weights, buffers and
    random numbers are the same with and without a probe.

    Args:
        config: Resolved options.
        components: The components of the run.
        data: The images, see `builders.probe_images`.

    Raises:
        NonFiniteError: A loss is nan or infinite.
        UnsupportedOperationError: The gradients of examples cannot be separated.
    """
    model, count = components.model, len(data)
    coupled = any(isinstance(module, _BatchNorm) for module in model.modules())
    sample = torch.ones(count, dtype=torch.bool)
    if coupled and count > EXACT:
        sample = torch.zeros(count, dtype=torch.bool).index_fill(0, torch.arange(EXACT) * count // EXACT, 1)
    estimator = NormEstimator("exact" if coupled and count <= EXACT else "auto", shared=False)
    params, names = named_params(model)
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    found = torch.zeros(count, 3, dtype=torch.float64, device=components.device)
    with _own_random_numbers(components.device, config.run.seed):
        for rows, batch in _batches(config, components, data):
            losses, x_adv = _losses(config, components, batch)
            norms = estimator.norms(losses, params, estimator.prepare(losses, list(zip(names, params, strict=True))))
            estimator.refit_interval = count  # one fit is enough for all batches, as the weights do not change
            found[rows, 0] = found[rows, 1] = norms.double()
            if not sample.all():
                own = sample[rows.cpu()].nonzero().flatten()
                found[rows[own.to(rows.device)], 1] = exact_squares(losses, [params], own.tolist())[0].sqrt()
            inputs, *grads = torch.autograd.grad(losses.sum(), [x_adv, *params], allow_unused=True)
            found[rows, 2] = inputs.double().flatten(1).norm(dim=1)
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total += grad
    found = all_reduce_sum(found)
    mean_square = sum((total / count).square().sum() for total in all_reduce_sum_many(sums))
    estimates, norms, input_norms = (column.cpu().numpy() for column in found.unbind(dim=1))
    exact = sample.numpy()
    mu, mu_error = corrected_mean(estimates, norms[exact], exact)
    square, sigma2_error = corrected_mean(estimates**2, norms[exact] ** 2, exact)
    sigma2 = square - float(mean_square)
    return ProbeResult(data.index.cpu().numpy(), norms, exact, input_norms, mu, mu_error, sigma2, sigma2_error)


def corrected_mean(estimates: np.ndarray, values: np.ndarray, sample: np.ndarray) -> tuple[float, float]:
    """The mean of N values of which some are known and all are estimated, and its standard error.

    Args:
        estimates: (N,) of all values.
        values: (k,) true values of the sample, k of 2 or more, or of all.
        sample: (N,) bool, which of them are known.

    Returns:
        The mean of the estimates and of their errors in the sample, and the standard error of the latter, with the
        correction for a finite population.

    References:
        Cochran 1977, "Sampling Techniques", Secs. 2.6 and 7.9.
    """
    errors, n = values - estimates[sample], len(estimates)
    k = len(errors)
    if k == n:
        return float(values.mean()), 0.0
    return float(estimates.mean() + errors.mean()), float(errors.std(ddof=1) * np.sqrt((1 - k / n) / k))


def _batches(config: TrainConfig, components: TrainComponents, data: ImageDataset) -> Iterator[tuple[Tensor, Batch]]:
    """The batches of this process, of equal sizes, with their rows in the data."""
    count = -(-len(data) // local_batch_size(config))
    size = -(-len(data) // count)
    loader = Loader(
        data,
        size,
        device=components.device,
        seed=config.run.seed,
        augment="none",
        shuffle=False,
        memory_format=memory_format_of(components.model),
    )
    rows = torch.arange(len(data), device=components.device).split(size)
    for number, (row, batch) in enumerate(zip(rows, loader.epoch(0), strict=True)):
        if number % world_size() == rank():
            yield row, batch


def _losses(config: TrainConfig, components: TrainComponents, batch: Batch) -> tuple[Tensor, Tensor]:
    """The losses (n,) with their graph, and the inputs that they are of."""
    model, (threat, *_) = components.model, config.threats()
    x = batch.x
    if config.method.name != "natural":
        attack = PGD(threat.eps, threat.eps / 4, STEPS, norm=threat.norm)
        x = attack(model, x, batch.y, key=Key(config.run.seed, 0, batch.index))
    x = x.detach().requires_grad_()
    model.train()
    with running_statistics_kept(model):
        losses = components.method.cross_entropy(logits_of(model, x), batch.y)
    check_losses(losses)
    return losses, x


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout draws the same numbers in every probe, and those of the run are not used up."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
