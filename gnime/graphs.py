"""A training step's losses and gradients as one CUDA graph: one launch instead of hundreds."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .device import Device
from .system import warn

WARM_UP = 3  # runs before a capture, in which libraries choose their kernels

Batch = list[Tensor | None]


def capture(work: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> tuple[Callable[[], None], Tensor]:
    """Records what `work` launches on the current CUDA device, gradients of the parameters included; runs none of it.

    Returns a function that runs it again on what now lies where it read, and the tensor that then holds its result. The
    gradients it writes to are the parameters' `.grad`.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    def afresh() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        return work()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            afresh()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # the next batch is copied to the device by another thread, which must not end the recording
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = afresh()
    return graph.replay, result


class Step:
    """Losses and gradients of one batch after another.

    On a CUDA device `work` is recorded with the first batch and replayed for others of its size. The last, short batch runs
    as on a CPU, and so does everything where recording fails, with dropout or a network whose loss `draws`, of which a graph
    would fix the random numbers, and where the batch is shared by several processes.

    Args:
        work: given a batch and its share of the whole batch, adds gradients to `.grad` and returns losses.
        networks: all that get gradients.
    """

    def __init__(self, work: Callable[[Batch, float], Tensor], networks: Sequence[nn.Module], device: Device):
        self._work, self._parameters = work, [p for network in networks for p in network.parameters()]
        draws = any(isinstance(module, nn.Dropout) or getattr(module, "draws", False)
                    for network in networks for module in network.modules())
        self._records = device.torch.type == "cuda" and device.world == 1 and not draws
        self._replay: Callable[[], None] | None = None

    def __call__(self, batch: Batch, share: float) -> Tensor:
        """The losses, and in `.grad` the gradients, of this batch alone. The next call may overwrite both."""
        if self._records and self._replay is None:
            self._record(batch, share)
        if self._replay is None or _shapes(batch) != _shapes(self._batch):
            for parameter in self._parameters:
                parameter.grad = None
            return self._work(batch, share)
        for place, value in zip(self._batch, batch, strict=True):
            if value is not None:
                place.copy_(value)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._replay()
        return self._losses

    def _record(self, batch: Batch, share: float) -> None:
        self._batch = [None if value is None else value.clone() for value in batch]
        try:
            self._replay, self._losses = capture(lambda: self._work(self._batch, share), self._parameters)
            self._gradients = [parameter.grad for parameter in self._parameters]
        except RuntimeError as error:
            self._records = False
            reason = str(error).partition("\n")[0]
            warn(f"training without a CUDA graph, which is slower: {reason}")


def _shapes(batch: Batch) -> list[torch.Size | None]:
    return [None if value is None else value.shape for value in batch]
