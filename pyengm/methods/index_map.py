"""Which training images this process has, in which row each is kept, and how rows follow them to other processes."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from pyengm.errors import DataError
from pyengm.utils.checks import require
from pyengm.utils.distributed import all_gather_object, rank

CHUNK = 1024  # rows between two processes at a time


class IndexMap:
    """The identities of images, (N,) int64, in the order of their rows. Raises DataError where one occurs twice."""

    def __init__(self, index: Tensor):
        self.index = index
        self._sorted, self._order = index.sort()
        if len(self._sorted.unique_consecutive()) < len(index):
            raise DataError("the training images have identities that occur more than once")

    def __len__(self) -> int:
        return len(self.index)

    def find(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """For identities (n,): which of them are here, (n,) bool, and the rows of these."""
        index = index.to(self.index.device)
        if not len(self):
            return torch.zeros_like(index, dtype=torch.bool), index[:0]
        place = torch.searchsorted(self._sorted, index).clamp_(max=len(self) - 1)
        here = self._sorted[place] == index
        return here, self._order[place[here]]

    def rows(self, index: Tensor) -> Tensor:
        """The rows (n,) of identities (n,). Raises DataError for one that is not here (`pyengm.utils.checks.require`)."""
        index = index.to(self.index.device)
        place = torch.searchsorted(self._sorted, index).clamp_(max=len(self) - 1)
        here = self._sorted[place] == index
        require(here.all(), self._unknown, here, index)
        return self._order[place]

    def _unknown(self, here: Tensor, index: Tensor) -> DataError:
        return DataError(
            f"{int((~here).sum())} of {len(index)} images are none of the {len(self)} that the method was prepared "
            f"for (first: identity {index[~here][0].item()}); tell prepare() about all training images"
        )

    def moved(self, values: Tensor, to: "IndexMap") -> Tensor:
        """The rows of `values` (N, ...) as the images `to` of this process have them, fetched from all processes.

        A collective call: every process names the images that it is to have. Raises DataError where nobody has one.
        """
        wanted = [index.to(self.index.device) for index in all_gather_object(to.index.cpu())]
        found = [self.find(index) for index in wanted]
        sent = [rows for _, rows in found]
        names = [index[here] for index, (here, _) in zip(wanted, found, strict=True)]
        counts = torch.tensor(all_gather_object([len(rows) for rows in sent]))  # (from, to)
        coming = counts[:, rank()].tolist()
        if sum(coming) != len(to):
            raise DataError(f"{len(to) - sum(coming)} of {len(to)} images are kept by no process, or by several")
        arrived = torch.empty(len(to), *values.shape[1:], dtype=values.dtype, device=values.device)
        for start in range(0, int(counts.max()), CHUNK):
            part = slice(start, start + CHUNK)
            sizes = [min(max(n - start, 0), CHUNK) for n in coming]
            index = _exchange([name[part] for name in names], sizes)
            arrived[to.rows(index)] = _exchange([values[rows[part]] for rows in sent], sizes)
        return arrived


def _exchange(parts: Sequence[Tensor], coming: Sequence[int]) -> Tensor:
    """Sends parts[p] (n_p, ...) to process p; returns the rows that came, those of process 0 first.

    coming: the number of rows from each process. Bytes are what is sent, as not every backend knows every type.
    """
    sent = torch.cat(list(parts))
    rows = sent.flatten(1) if sent.dim() > 1 else sent[:, None]
    size = rows.shape[1] * rows.element_size()
    came = rows.new_empty(sum(coming), rows.shape[1])
    distributed.all_to_all_single(
        came.view(torch.uint8).view(-1, size),
        rows.contiguous().view(torch.uint8).view(-1, size),
        list(coming),
        [len(part) for part in parts],
    )
    return came.view(-1, *sent.shape[1:])
