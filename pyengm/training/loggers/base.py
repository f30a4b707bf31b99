"""What a logger is told, and when."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


class Logger:
    """Takes the figures of a run; a logger of one's own overrides what it needs.

    The rows hold plain numbers, which no logger has to wait for. What could not be measured is None.
    Rows of steps and epochs are functions of the run alone; those of epochs are the same in a resumed run, bit by bit:

        epoch                 from 0
        batch                 batches of the epoch done (steps alone)
        lr                    learning rate of the step to come
        loss                  mean over the training images as attacked, of every pass that classifies them
        train_robust          share of these classified right
        clipped               share of these whose weight in the gradient was below 1
        grad_norm_mean        of the norms of their gradients in all weights jointly, where the optimiser computes
        grad_norm_variance    them and they are finite (fp16 skips steps where one is not)
        grad_norm_error       of these norms where they are estimates: mean |estimate / exact - 1| over the examples on
                              which factors were fitted anew, estimated by the factors before

    A row of steps is about the training images since the row before. That of an epoch is about all of its images,
    and holds besides, where images are held out

        natural, robust             accuracy on the held-out images, as they are and under PGD-20
        natural_loss, robust_loss   mean cross-entropy there
        natural_ece, robust_ece     expected calibration error there, 15 bins (`expected_calibration_error`)

    where the training is adversarial

        train_pgd             accuracy under PGD-5 on some training images
        catastrophic_overfitting           whether that fell by more than 20 points since the epoch before

    and, always, best: whether the weights become the best ones. Timing, of this process, on the clock on the wall:

        images_per_second   of the training steps, since the row before or over the epoch
        seconds_to_finish     of the training, if steps go on like those of this epoch, and the time between two epochs
                              is what it was last (in the first epoch nothing is known of it)

    and for an epoch

        seconds_training      of its steps, since its start or since the run was resumed within it
        seconds_evaluation    of measuring accuracies after them
        peak_memory_mib       the most so far that tensors on the GPU have taken; on a CPU, that the process has
    """

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Called first. config: the options of the run, as in config.yaml; batches: how many an epoch has.

        epoch, batch: the first to come, other than 0 where a run is resumed. What was logged from there on by an
        earlier process, which was killed before it saved its state, comes again: drop the old.
        """

    def step(self, row: Row, timing: Row) -> None:
        """Called after every batch on a CPU, every 20 on a GPU, and after the last one of an epoch."""

    def epoch(self, row: Row, timing: Row) -> None:
        """Called after an epoch, when everything is measured and before its checkpoints are written."""

    def log(self, line: str) -> None:
        """Called with what a person should know."""

    def close(self) -> None:
        """Called last, also after an error, even one in `start`."""
