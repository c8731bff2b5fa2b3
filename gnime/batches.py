"""Rows of arrays on their way to the device, in batches."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .system import release_freed_memory

CHUNK = 256  # rows at a time where a whole array is read on the CPU
# Images that networks see at once outside training. Few enough that the maps of the first layers stay small in memory, many
# enough that a dense layer's weights are read once for all of them.
AT_ONCE = {"cpu": 64, "cuda": 256}
RELEASE_EVERY = 2.0  # seconds of a piece of work after which freed memory goes back to the system
CACHED_SHARE = 0.25  # of the free memory of a CUDA device that one array may take

Rows = np.ndarray | Tensor  # an array whose first axis is rows


def cache_on_device(array: np.ndarray, device: torch.device) -> Rows:
    """The array on the CUDA device if it fits there well. Otherwise it stays mapped from disk and is read by batches."""
    if device.type != "cuda" or array.nbytes > CACHED_SHARE * torch.cuda.mem_get_info(device)[0]:
        return array
    on_device = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, device=device)
    for start in range(0, len(array), 4096):
        on_device[start : start + 4096] = torch.from_numpy(np.array(array[start : start + 4096]))
    return on_device


def gather_rows(array: Rows, rows: Tensor | range, device: torch.device) -> Tensor:
    """Rows of an array on the device: uint8 as float32 in [0, 1], pictures in channels-last order."""
    contiguous = isinstance(rows, range)
    if isinstance(array, Tensor):
        batch = array[rows.start : rows.stop] if contiguous else array[_to_device(rows, array.device)]
    else:
        piece = array[rows.start : rows.stop] if contiguous else array[rows.numpy()]
        batch = _to_device(torch.from_numpy(np.array(piece) if contiguous else piece), device)
    order = torch.channels_last if batch.ndim == 4 else torch.preserve_format
    if batch.dtype == torch.uint8:  # in one copy: every other leaves a gap of its size in memory
        batch = batch.to(torch.float32, memory_format=order).div_(255)
    elif batch.is_floating_point():
        batch = batch.to(torch.float32, memory_format=order)
    return channels_last(batch) if batch.ndim == 4 else batch


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """The copy to a CUDA device does not wait for the device's earlier work. That takes pinned memory and `non_blocking`."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def channels_last(pictures: Tensor) -> Tensor:
    """In channels-last order by its strides too.

    Pictures of one channel are in both orders at once. PyTorch takes them for the other, slow one in all that follows.
    """
    return pictures if pictures.stride(1) == 1 else pictures.clone(memory_format=torch.channels_last)


def batches(sources: Sequence[Rows | None], rows: Sequence[Tensor | range], device: torch.device,
            ) -> Iterator[list[Tensor | None]]:
    """For each of `rows`, those rows of every source on the device. The next batch is fetched while one is used."""

    def fetch(wanted: Tensor | range) -> list[Tensor | None]:
        return [None if source is None else gather_rows(source, wanted, device) for source in sources]

    with ThreadPoolExecutor(1) as ahead:
        pending = None
        for wanted in rows:
            following = ahead.submit(fetch, wanted)
            if pending is not None:
                yield pending.result()
                release_freed_memory(every=RELEASE_EVERY)
            pending = following
        if pending is not None:
            yield pending.result()


def slices(rows: range, size: int) -> list[range]:
    """A range cut into ranges of at most `size`."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def iter_batches(sources: Sequence[Rows | None], rows: range, device: torch.device) -> Iterator[tuple[range, list]]:
    """All `rows` in order, in batches on the device that suit its memory: (their range, the sources' rows)."""
    parts = slices(rows, AT_ONCE[device.type])
    yield from zip(parts, batches(sources, parts, device), strict=True)


def mean_std(array: Rows, rows: range) -> tuple[float, float]:
    """Mean and standard deviation of all numbers in the rows, as scalars."""
    count = total = squared = 0.0
    for part in slices(rows, CHUNK):
        values = array[part.start : part.stop]
        values = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
        count, total, squared = count + values.size, total + values.sum(), squared + np.square(values).sum()
    mean = total / count
    return float(mean), float(max(squared / count - mean**2, 0.0) ** 0.5)
