"""Functions captured in CUDA graphs: what is the same for every batch is recorded once and then launched as a whole."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pyengm.errors import ConfigError

WARM_UP = 3  # batches before the capture: libraries choose and load their kernels, the allocator fills its pool

Results = tuple[Tensor, ...]
F = TypeVar("F", bound=Callable[..., Results])


class Graph(Protocol):
    """A recording of one call. Tests on a CPU use one that records torch's operators (`RecordedGraph`)."""

    def warm_up(self, function: Callable[[], Results]) -> Results:
        """Calls the function where it will be captured."""
        ...

    def capture(self, function: Callable[[], Results]) -> Results:
        """Records a call without running it on the device; each replay overwrites the memory of these results."""
        ...

    def replay(self) -> None:
        """Runs the recorded call on the present contents of its inputs."""
        ...


class CudaGraph:
    """One torch.cuda.CUDAGraph, warmed up and captured on the same side stream, as torch requires.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], Results]) -> Results:
        """Calls the function on the side stream."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):  # which makes its device the current one
            results = function()
        current.wait_stream(self.stream)
        for result in results:  # made on one stream, read on the other
            result.record_stream(current)
        return results

    def capture(self, function: Callable[[], Results]) -> Results:
        """Records a call on the side stream."""
        # Errors of this thread alone: one that fetches batches may pin memory meanwhile.
        with (
            torch.cuda.device(self.stream.device),
            torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            return function()

    def replay(self) -> None:
        """Launches the recorded call."""
        with torch.cuda.device(self.stream.device):
            self.graph.replay()


class CapturedFunction:
    """Runs functions of tensors; a call that repeats with the same shapes and settings is captured and replayed.

    The first `WARM_UP` batches run on a side stream without capture. They are batches of the training, so no work is
    wasted and running statistics see every batch once. Other settings or shapes drop the capture and begin anew.

    Args:
        n: The number of examples of the batches to capture. Batches of another size, such as the last one of an epoch,
            run without capture.
        graph: Makes a `Graph` for a device.
    """

    def __init__(self, n: int, graph: Callable[[torch.device], Graph] = CudaGraph):
        self.n, self._new_graph = n, graph
        self._settings: Hashable = None
        self.recording: _Recording | None = None

    def __call__(
        self, function: Callable[..., Results], settings: Hashable, changed: Tensor, *others: Tensor
    ) -> Results:
        """Returns function(changed, *others), which changes its first argument in place.

        Args:
            function: Draws no random numbers of a key and does not make the host wait for the device.
            settings: Everything that the function depends on, except the contents of the tensors and of memory that
                stays in place, such as that of parameters.
            changed: (n, ...) tensor.
            others: Tensors that stay as they are.

        Returns:
            Tensors that belong to the caller.

        Raises:
            ConfigError: Where the function cannot be captured.
        """
        return self.run(function, settings, changed, *others)[0]

    def run(self, function: F, settings: Hashable, changed: Tensor, *others: Tensor) -> tuple[Results, F]:
        """As a call, for a function that notes on the host what its results are.

        Returns:
            The results, and the function that gave them: in a replay not the given one, which was not called, but the
            one that was captured, with its notes.
        """
        tensors = (changed, *others)
        if len(changed) != self.n:
            return function(*tensors), function
        settings = (settings, *((t.shape, t.stride(), t.dtype, t.device) for t in tensors))
        if self.recording is None or settings != self._settings:
            self._settings, self.recording = settings, _Recording(self._new_graph(changed.device))
        return self.recording.run(function, tensors)


class _Recording:
    """The capture of a function for one combination of settings and shapes, after its warm-up."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.captured = False
        self._function: Any = None  # that was captured
        self._warm_ups = 0
        self._inputs: Results = ()  # memory that the graph reads; it writes to the first
        self._results: Results = ()

    def run(self, function: F, tensors: Results) -> tuple[Results, F]:
        if self._warm_ups < WARM_UP:
            self._warm_ups += 1
            return self.graph.warm_up(lambda: function(*tensors)), function
        if not self.captured:
            self._capture(function, tensors)
        for t, new in zip(self._inputs, tensors, strict=True):
            t.copy_(new)
        self.graph.replay()
        tensors[0].copy_(self._inputs[0])
        return tuple(result.clone() for result in self._results), self._function

    def _capture(self, function: Callable[..., Results], tensors: Results) -> None:
        inputs = tuple(t.detach().clone() for t in tensors)  # clones of dense tensors keep their strides
        try:
            self._results = self.graph.capture(lambda: function(*inputs))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"a step of this model cannot be captured in a CUDA graph: {reason}; set cuda_graphs to False"
            ) from error
        self._inputs, self._function, self.captured = inputs, function, True
