"""Rows of arrays as batches on the device."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .system import release_freed_memory

CHUNK = 256  # rows per step where a whole array is read on the CPU
# Batch size outside training. Small enough for the memory of the first layers' maps, large enough that reading a dense
# layer's weights takes little of the time.
AT_ONCE = {"cpu": 64, "cuda": 256}
USUAL = 128 * 128  # pixels; of larger images fewer are taken at once
MOST_VALUES = 1 << 24  # numbers at once where a whole array is read: 134 MB of 64-bit ones
RELEASE_EVERY = 2.0  # seconds between two returns of freed memory to the system
CACHED_SHARE = 0.25  # the part of a CUDA device's free memory that one array may take

Rows = np.ndarray | Tensor  # an array whose first axis is rows


def cache_on_device(array: np.ndarray, device: torch.device) -> Rows:
    """The array on the CUDA device, if it takes at most `CACHED_SHARE` of the free memory. Otherwise the array itself."""
    if device.type != "cuda" or array.nbytes > CACHED_SHARE * torch.cuda.mem_get_info(device)[0]:
        return array
    on_device = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, device=device)
    for start in range(0, len(array), 4096):
        on_device[start : start + 4096] = torch.from_numpy(np.array(array[start : start + 4096]))
    return on_device


def gather_rows(array: Rows, rows: Tensor | range, device: torch.device) -> Tensor:
    """Rows of an array on the device. uint8 becomes float32 in [0, 1], (n, C, H, W) is in channels-last order."""
    contiguous = isinstance(rows, range)
    if isinstance(array, Tensor):
        batch = array[rows.start : rows.stop] if contiguous else array[_to_device(rows, array.device)]
    else:
        piece = array[rows.start : rows.stop] if contiguous else array[rows.numpy()]
        batch = _to_device(torch.from_numpy(np.array(piece) if contiguous else piece), device)
    order = torch.channels_last if batch.ndim == 4 else torch.preserve_format
    if batch.dtype == torch.uint8:  # one copy, because each further copy would fragment memory
        batch = batch.to(torch.float32, memory_format=order).div_(255)
    elif batch.is_floating_point():
        batch = batch.to(torch.float32, memory_format=order)
    return channels_last(batch) if batch.ndim == 4 else batch


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device. Pinned memory and `non_blocking` let the copy start before the device's earlier work ends."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def channels_last(pictures: Tensor) -> Tensor:
    """Pictures (n, C, H, W) with channels-last strides.

    With one channel both memory orders are the same. PyTorch then chooses the kernels of the slower order, unless the strides
    are those of channels last.
    """
    return pictures if pictures.stride(1) == 1 else pictures.clone(memory_format=torch.channels_last)


def batches(sources: Sequence[Rows | None], rows: Sequence[Tensor | range], device: torch.device,
            ) -> Iterator[list[Tensor | None]]:
    """For each element of `rows`, those rows of every source on the device. The next batch is fetched in the background."""

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


def at_once(sources: Sequence[Rows | None], device: torch.device) -> int:
    """Batch size outside training, of sources of which some are images (n, C, H, W)."""
    pictures = [source for source in sources if source is not None and source.ndim == 4]
    pixels = max([USUAL, *(math.prod(source.shape[2:]) for source in pictures)])
    return max(1, AT_ONCE[device.type] * USUAL // pixels)


def rows_at_once(shape: tuple[int, ...]) -> int:
    """How many rows of this shape are read at once on the CPU: at most `CHUNK`, and at most `MOST_VALUES` numbers."""
    return max(1, min(CHUNK, MOST_VALUES // max(1, math.prod(shape))))


def slices(rows: range, size: int) -> list[range]:
    """Successive parts of a range, each of at most `size` rows."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def iter_batches(sources: Sequence[Rows | None], rows: range, device: torch.device) -> Iterator[tuple[range, list]]:
    """Batches of `rows` in order, `at_once` rows each: (range of the batch, those rows of every source on the device)."""
    parts = slices(rows, at_once(sources, device))
    yield from zip(parts, batches(sources, parts, device), strict=True)


def mean_std(array: Rows, rows: range) -> tuple[float, float]:
    """Mean and standard deviation of all numbers in the rows."""
    count = total = squared = 0.0
    for part in slices(rows, rows_at_once(array.shape[1:])):
        values = array[part.start : part.stop]
        values = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
        count, total, squared = count + values.size, total + values.sum(), squared + np.square(values).sum()
    mean = total / count
    return float(mean), float(max(squared / count - mean**2, 0.0) ** 0.5)
