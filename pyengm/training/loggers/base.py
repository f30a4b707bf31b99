"""The interface of a logger, and the keys of its rows."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


class Logger:
    """Receives the metrics of a run. Subclasses override the methods that they need.

    Rows hold plain Python values, so that no logger waits for a GPU. A value that could not be measured is None.

    Rows of steps and of epochs depend on the run alone, and those of epochs are the same to the bit in a resumed run.
    Both hold:

    - epoch: counted from 0.
    - batch: number of batches of the epoch that are done (rows of steps only).
    - lr: learning rate of the next step.
    - loss: mean loss over the attacked training images, over all passes that classify them.
    - train_robust: accuracy on these images, in [0, 1].
    - clipped: share of these images whose weight in the gradient was below 1.
    - grad_norm_mean: mean over examples of the norm of the gradient in all parameters jointly. None where the optimiser
      computes no norms; norms that are not finite, for which fp16 skips the step, do not count.
    - grad_norm_var: variance over examples of that norm (divided by n), not the gradient variance sigma^2 of the ENGM
      paper, which is E |g - mean g|^2.
    - grad_norm_error: mean |estimate / exact - 1| of norms that are estimates, over the examples on which their factors
      were fitted again, estimated by the factors before the fit.
    - batch_grad_square: mean over the batches of |g|^2, where g is the gradient of a batch in all parameters jointly:
      the weighted mean over its examples, before MGNC or SNGM change its norm. None in a fused step of fp16.

    With Dynamic, over the attacked images:

    - fosc_mean: mean first-order stationary condition where the attack took its last gradient.
    - attack_steps_mean: mean number of steps that an image took.
    - stopped: share that was stopped before the last step.

    A row of steps covers the training images since the row before. A row of an epoch covers all its images. Where
    images are held out, it also holds:

    - natural, robust: accuracy on the held-out images as they are and under PGD-20.
    - natural_loss, robust_loss: mean cross-entropy there.
    - natural_ece, robust_ece: expected calibration error there, 15 bins (`expected_calibration_error`).

    In adversarial training it also holds:

    - train_pgd: accuracy under PGD-5 on some training images, or under the attack of the option train_attack.
    - catastrophic_overfitting: whether train_pgd fell by more than 20 points since the epoch before.

    And always:

    - best: whether the weights of the epoch become the best ones; None where no images select.

    With a probe (`pyengm.training.probe.ProbeResult`), under the weights after the epoch:

    - probe_mu: mean over fixed training images of the norm of the gradient of their loss, mu of the ENGM paper.
    - probe_sigma2: the variance E|g - mean g|^2 of these gradients, sigma^2 of the ENGM paper.
    - probe_mu_error, probe_sigma2_error: their standard errors where batch norm makes most of the norms estimates,
      else 0.

    The timing is wall-clock time of this process:

    - images_per_second: of the training steps, since the row before or over the epoch.
    - seconds_to_finish: remaining time of the training, from the speed of this epoch and the last time between two
      epochs. In the first epoch nothing is known of that time.

    The timing of an epoch also holds:

    - seconds_training: time of its steps, since its start or since the run was resumed within it.
    - seconds_evaluation: time to measure accuracies after them.
    - peak_memory_mib: peak memory so far, of the tensors on the GPU, or of the whole process on a CPU.
    """

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Called first.

        An earlier process may have logged batches from this one on before it was killed without saving its state. They
        are logged again: drop the old rows.

        Args:
            config: The options of the run, as in config.yaml.
            batches: Number of batches of an epoch.
            epoch: The next epoch, not 0 where a run is resumed.
            batch: The next batch of that epoch.
        """

    def step(self, row: Row, timing: Row) -> None:
        """Called after every batch on a CPU, every 20 on a GPU, and after the last one of an epoch."""

    def held_out(self, done: int, total: int) -> None:
        """Called while held-out images are attacked, with the number of images done and that of all in this process."""

    def epoch(self, row: Row, timing: Row) -> None:
        """Called after an epoch, when everything is measured and before its checkpoints are written."""

    def log(self, line: str) -> None:
        """Called with a message for the user."""

    def close(self) -> None:
        """Called last, also after an error, including one in `start`."""
