"""CUDA graphs: what is the same for every batch is recorded once and then launched as a whole."""

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from pyengm.errors import ConfigError

WARM_UP = 3  # batches before the capture: libraries choose and load their kernels, the allocator fills its pool

Results = tuple[Tensor, ...]


class Graph(Protocol):
    """A recording of one call. A test on a CPU has its own, which calls again in place of a replay."""

    def warm_up(self, function: Callable[[], Results]) -> Results:
        """Calls the function where it will be captured."""

    def capture(self, function: Callable[[], Results]) -> Results:
        """Records a call, without running it on the device; each replay overwrites the memory of these results."""

    def replay(self) -> None:
        """Runs what was recorded, on the contents that its inputs have now."""


class CudaGraph:
    """One torch.cuda.CUDAGraph, warmed up and captured on the same side stream of a device, as captures ask for."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], Results]) -> Results:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):  # which makes its device the current one
            results = function()
        current.wait_stream(self.stream)
        for result in results:  # made on one stream, read on the other
            result.record_stream(current)
        return results

    def capture(self, function: Callable[[], Results]) -> Results:
        # Errors of this thread alone: one that fetches batches may pin memory meanwhile.
        with (
            torch.cuda.device(self.stream.device),
            torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            return function()

    def replay(self) -> None:
        with torch.cuda.device(self.stream.device):
            self.graph.replay()


class Replay:
    """Runs functions of tensors; what comes again and again in one form is captured and replayed.

    n: the number of examples of the batches to capture; others, such as the short last one of an epoch, run as they
    are. The first `WARM_UP` batches do too, on a side stream: they are real ones, so that nothing is computed in vain
    and running statistics see every batch once. A batch of another form begins anew, and the last capture is dropped.
    graph: makes a `Graph` for a device.
    """

    def __init__(self, n: int, graph: Callable[[torch.device], Graph] = CudaGraph):
        self.n, self._new_graph = n, graph
        self._form: Hashable = None
        self._graph: Graph | None = None
        self._seen = 0
        self._inputs: Results | None = None  # memory that the recording reads, and its first one writes
        self._results: Results = ()

    def __call__(self, form: Hashable, function: Callable[..., Results], moved: Tensor, *others: Tensor) -> Results:
        """function(moved, *others): changes `moved` in place and returns tensors that are the caller's own.

        form: all that the function depends on besides the contents of these tensors and of memory that stays where it
        is, such as that of parameters. It draws no random numbers of a key, and does not make the host wait.
        Raises ConfigError where it cannot be captured.
        """
        tensors = (moved, *others)
        if len(moved) != self.n:
            return function(*tensors)
        form = (form, *((t.shape, t.stride(), t.dtype, t.device) for t in tensors))
        if form != self._form:
            self._form, self._graph, self._seen, self._inputs = form, self._new_graph(moved.device), 0, None
        self._seen += 1
        if self._seen <= WARM_UP:
            return self._graph.warm_up(lambda: function(*tensors))
        if self._inputs is None:
            self._capture(function, tensors)
        for kept, t in zip(self._inputs, tensors, strict=True):
            kept.copy_(t)
        self._graph.replay()
        moved.copy_(self._inputs[0])
        return tuple(result.clone() for result in self._results)

    def _capture(self, function: Callable[..., Results], tensors: Results) -> None:
        inputs = tuple(t.detach().clone() for t in tensors)  # clones of dense tensors keep their strides
        try:
            self._results = self._graph.capture(lambda: function(*inputs))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"a step of this model cannot be captured in a CUDA graph: {reason}; set cuda_graphs to False"
            ) from error
        self._inputs = inputs
