"""The rows in which a process keeps its training images, and the exchange of rows between processes."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from pyengm.errors import DataError
from pyengm.utils.checks import require
from pyengm.utils.distributed import all_gather_object, rank

CHUNK = 1024  # rows between two processes at a time


class IndexMap:
    """The identities of images in the order of their rows.

    Args:
        index: (N,) int64 identities.

    Raises:
        DataError: An identity occurs twice.
    """

    def __init__(self, index: Tensor):
        self.index = index
        self._sorted, self._order = index.sort()
        if len(self._sorted.unique_consecutive()) < len(index):
            raise DataError("the training images have identities that occur more than once")

    def __len__(self) -> int:
        return len(self.index)

    def find(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """For identities (n,): whether this process has each of them, (n,) bool, and the rows of those that it has."""
        index = index.to(self.index.device)
        if not len(self):
            return torch.zeros_like(index, dtype=torch.bool), index[:0]
        position = torch.searchsorted(self._sorted, index).clamp_(max=len(self) - 1)
        here = self._sorted[position] == index
        return here, self._order[position[here]]

    def rows(self, index: Tensor) -> Tensor:
        """The rows (n,) of identities (n,). Raises DataError for an unknown one (`pyengm.utils.checks.require`)."""
        index = index.to(self.index.device)
        position = torch.searchsorted(self._sorted, index).clamp_(max=len(self) - 1)
        here = self._sorted[position] == index
        require(here.all(), self._unknown, here, index)
        return self._order[position]

    def _unknown(self, here: Tensor, index: Tensor) -> DataError:
        return DataError(
            f"{int((~here).sum())} of {len(index)} images are not among the {len(self)} that the method was prepared "
            f"for (first: identity {index[~here][0].item()}); give prepare() all training images"
        )

    def fetch_rows(self, values: Tensor, to: "IndexMap") -> Tensor:
        """The values of other images, fetched from all processes; a collective call.

        Args:
            values: (N, ...) values of the images of this map, by rows.
            to: The images that this process is to have.

        Returns:
            (n, ...) values of the images `to`, by rows.

        Raises:
            DataError: No process, or more than one, has an image.
        """
        wanted = [index.to(self.index.device) for index in all_gather_object(to.index.cpu())]
        found = [self.find(index) for index in wanted]
        sent = [rows for _, rows in found]
        names = [index[here] for index, (here, _) in zip(wanted, found, strict=True)]
        counts = torch.tensor(all_gather_object([len(rows) for rows in sent]))  # (from, to)
        counts_in = counts[:, rank()].tolist()
        if sum(counts_in) != len(to):
            raise DataError(f"{len(to) - sum(counts_in)} of {len(to)} images are kept by no process, or by several")
        received = torch.empty(len(to), *values.shape[1:], dtype=values.dtype, device=values.device)
        for start in range(0, int(counts.max()), CHUNK):
            part = slice(start, start + CHUNK)
            sizes = [min(max(n - start, 0), CHUNK) for n in counts_in]
            index = _exchange([name[part] for name in names], sizes)
            received[to.rows(index)] = _exchange([values[rows[part]] for rows in sent], sizes)
        return received


def _exchange(parts: Sequence[Tensor], counts_in: Sequence[int]) -> Tensor:
    """Sends parts[p] (n_p, ...) to process p; returns the received rows, those of process 0 first.

    counts_in: the number of rows from each process. Rows are sent as bytes, as not every backend supports every type.
    """
    sent = torch.cat(list(parts))
    rows = sent.flatten(1) if sent.dim() > 1 else sent[:, None]
    size = rows.shape[1] * rows.element_size()
    received = rows.new_empty(sum(counts_in), rows.shape[1])
    distributed.all_to_all_single(
        received.view(torch.uint8).view(-1, size),
        rows.contiguous().view(torch.uint8).view(-1, size),
        list(counts_in),
        [len(part) for part in parts],
    )
    return received.view(-1, *sent.shape[1:])
