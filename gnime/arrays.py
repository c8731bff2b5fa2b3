"""Arrays on disk: hickle files that are written in slices, verified by checksums and read by memory-mapping.

`hickle.load` opens them too. This module reads them with h5py only, so that nothing in a file is unpickled. The rows of a
file that it wrote are one contiguous block, which can be memory-mapped. So an array may be larger than memory.

A foreign file is one that GNIME did not write. It has no record of its making and no checksum.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from .errors import GnimeError, printable
from .store import open_artifact, reserve, writing

LAYOUT = 2  # version of the file layout; raised when files of the version before can no longer be read
CRC_BLOCK = 1 << 20  # bytes per CRC-32; the digest is the SHA-256 of record, shape, type and all CRC-32s
RECORD = "gnime"  # HDF5 attribute of the record
HEADER = 512  # bytes of the HDF5 user block, which precedes the HDF5 data; ours holds the checksums
MAGIC = b"gnime array\n"
MOST_AT_ONCE = 1 << 30  # bytes of a compressed piece of somebody else's array
ATTRIBUTE_LIMIT = 60_000  # bytes; an HDF5 attribute has at most 64 KiB


@dataclass
class Array:
    """The array in a file.

    Attributes:
        rows: memory-mapped, read-only.
        record: plain data that describes how the array was made; None for a foreign file.
        digest: SHA-256 of record, shape, type and rows, in hexadecimal.
    """

    path: Path
    rows: np.ndarray
    record: dict | None
    digest: str


class Writer:
    """Writes the rows of an array in order; see `create`."""

    def __init__(self, dataset: h5py.Dataset):
        self._dataset, self._next, self._crcs, self._rest = dataset, 0, [], b""

    def write(self, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows, self._dataset.dtype)
        self._dataset[self._next : self._next + len(rows)] = rows
        self._next += len(rows)
        data = self._rest + rows.tobytes()
        whole = len(data) // CRC_BLOCK * CRC_BLOCK
        self._crcs += [zlib.crc32(data[i : i + CRC_BLOCK]) for i in range(0, whole, CRC_BLOCK)]
        self._rest = data[whole:]

    def finish(self) -> list[int]:
        if self._next != len(self._dataset):
            raise AssertionError(f"{self._next} rows were written, not {len(self._dataset)}")
        return self._crcs + ([zlib.crc32(self._rest)] if self._rest else [])


@contextlib.contextmanager
def create(path: Path, shape: tuple[int, ...], dtype: str, record: dict) -> Iterator[Writer]:
    """Yields a writer for a new file. The file appears at `path` when the block ends and all rows are written.

    Raises:
        GnimeError: the disk is full, or the folder cannot be written.
    """
    import hickle

    dtype = np.dtype(dtype)
    text = json.dumps(record).encode("ascii")
    with writing(path) as part:
        _reserve(part, int(np.prod(shape)) * dtype.itemsize + 2 * len(text) + (1 << 18))
        with h5py.File(part, "w", userblock_size=HEADER, locking=False) as file:  # `artifact_lock` locks
            hickle.dump(np.zeros((0, *shape[1:]), dtype), file)  # for hickle's attributes; h5py writes the rows
            attributes = dict(file["data"].attrs)
            del file["data"]
            early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            dataset = file.create_dataset("data", shape, dtype, dcpl=early)
            for name, value in attributes.items():
                dataset.attrs[name] = value
            pieces = [text[i : i + ATTRIBUTE_LIMIT] for i in range(0, len(text), ATTRIBUTE_LIMIT)]
            file.attrs[RECORD] = len(pieces)
            for i, piece in enumerate(pieces):
                file.attrs[f"{RECORD}{i}"] = np.bytes_(piece)
            file.flush()
            _reserve(part, part.stat().st_size)
            offset, nbytes = dataset.id.get_offset(), dataset.nbytes
            writer = Writer(dataset)
            yield writer
            digest = _digest(record, shape, dtype.str, writer.finish())
        header = {"layout": LAYOUT, "offset": offset, "bytes": nbytes, "digest": digest,
                  "rest": _digest_around(part, offset, nbytes)}
        with part.open("r+b") as file:
            file.write((MAGIC + json.dumps(header).encode()).ljust(HEADER, b"\n"))


def _reserve(path: Path, size: int) -> None:
    """Allocates disk space before libhdf5 writes, because libhdf5 crashes when the disk is full."""
    with path.open("r+b") as file:
        reserve(file, path, size)


def _digest(record: dict, shape: tuple[int, ...], dtype: str, crcs: list[int]) -> str:
    description = json.dumps([LAYOUT, record, list(shape), np.dtype(dtype).str], sort_keys=True).encode()
    return hashlib.sha256(description + np.asarray(crcs, "<u4").tobytes()).hexdigest()


def _digest_around(path: Path, offset: int, nbytes: int) -> str:
    """SHA-256 of a file without its header and its rows, that is of the structures that libhdf5 parses."""
    with path.open("rb") as file:
        file.seek(HEADER)
        hasher = hashlib.sha256(file.read(offset - HEADER))
        file.seek(offset + nbytes)
        hasher.update(file.read())
    return hasher.hexdigest()


def _checksums(rows: np.ndarray) -> list[int]:
    data = rows.reshape(-1).view(np.uint8) if rows.size else np.zeros(0, np.uint8)
    with ThreadPoolExecutor(4) as pool:  # zlib releases the GIL
        return list(pool.map(lambda i: zlib.crc32(data[i : i + CRC_BLOCK]), range(0, len(data), CRC_BLOCK)))


def load(path: Path) -> Array:
    """Memory-maps an array's file and verifies its checksums: that of the HDF5 structures before libhdf5 parses them.

    Raises:
        GnimeError: the file is damaged, cannot be read, is open for writing in another program, holds something other than one
            array of numbers, or refers to data in another file.
    """
    with open_artifact(path) as file:
        _check_not_in_use(file, path)
        return _load(path)


def channels_first(array: Array, shape: tuple[int, ...]) -> Array:
    """Somebody else's pictures (n, H, W, C) as (n, C, H, W), a view, where only so they are of `shape`, that is (C, H, W)."""
    rows = array.rows
    if array.record is None and rows.ndim == 4 and rows.shape[1:] == (*shape[1:], shape[0]) != shape:
        return replace(array, rows=rows.transpose(0, 3, 1, 2))
    return array


def _check_not_in_use(file: BinaryIO, path: Path) -> None:
    """libhdf5 locks a file that it may write. Until it is closed, its checksum does not fit."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise GnimeError(f"{path}: another program has it open for writing; close it there and run the command again") from None
    except OSError:  # a file system without locks
        pass


def _load(path: Path) -> Array:
    remedy = "put a whole one there, or move it away and run prepare.py again"
    damaged = f"{path}: damaged (its checksum does not fit); {remedy}"
    try:
        header = _read_header(path)
        if header is not None and header["layout"] != LAYOUT:
            raise GnimeError(f"{path}: written in layout {header['layout']}, this version reads {LAYOUT}; {remedy}")
        if header is not None and _digest_around(path, header["offset"], header["bytes"]) != header["rest"]:
            raise GnimeError(damaged)
        with h5py.File(path, "r", locking=False) as file:
            dataset = _only_dataset(file)
            rows, record = _map(path, dataset), _record(file)
    except GnimeError:
        raise
    except Exception as error:  # a damaged or hostile file can make h5py raise anything
        if isinstance(error, OSError) and error.errno:
            raise GnimeError(f"{path}: cannot be read ({os.strerror(error.errno)}); see to that, and run the command "
                             "again") from None
        reason = printable(error) if isinstance(error, ValueError) else "it is damaged"
        raise GnimeError(f"{path}: not a hickle file with one array of numbers ({reason}); {remedy}") from None
    digest = _digest(record or {}, rows.shape, rows.dtype.str, _checksums(rows))
    if (header is None) != (record is None) or (header is not None and digest != header["digest"]):
        raise GnimeError(damaged)
    return Array(path, rows, record, digest)


def _read_header(path: Path) -> dict | None:
    with open_artifact(path) as file:
        block = file.read(HEADER)
    return json.loads(block[len(MAGIC) :]) if block.startswith(MAGIC) else None


def _record(file: h5py.File) -> dict | None:
    if not any(name.startswith(RECORD) for name in file.attrs):
        return None
    return json.loads(b"".join(bytes(file.attrs[f"{RECORD}{i}"]) for i in range(int(file.attrs[RECORD]))))


def _only_dataset(file: h5py.File) -> h5py.Dataset:
    datasets = []
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
            datasets.append(file[name])
    if len(datasets) != 1:
        raise ValueError(f"it has {len(datasets)} arrays")
    dataset = datasets[0]
    if dataset.external or dataset.is_virtual:
        raise ValueError("its data are in another file")
    if dataset.dtype.kind not in "uif" or dataset.dtype.hasobject:
        raise ValueError(f"its values are {dataset.dtype}")
    return dataset


def _map(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """The rows: memory-mapped from the file if they are one contiguous block of numbers that PyTorch has there, otherwise from
    a temporary copy.
    """
    size = path.stat().st_size
    offset = dataset.id.get_offset()
    longer = dataset.dtype.kind == "f" and dataset.dtype.itemsize > 8  # than any type of PyTorch
    dtype = np.dtype(np.float64) if longer else dataset.dtype.newbyteorder("=")
    if offset is not None and dataset.chunks is None:
        if offset + dataset.nbytes > size:
            raise ValueError("it is truncated")
        if dtype == dataset.dtype:
            return _memmap(path, dtype, offset, dataset.shape)
    if dataset.nbytes > 1000 * size:  # no real array compresses so well
        raise ValueError(f"its shape {dataset.shape} is far more than the file holds")
    if dataset.chunks is not None and math.prod(dataset.chunks) * dataset.dtype.itemsize > MOST_AT_ONCE:
        raise ValueError(f"its pieces of {dataset.chunks} are too large")
    rows = scratch(dataset.shape, dtype, path.parent)
    step = max(1, (64 << 20) // max(1, dataset.nbytes // max(1, len(dataset))))
    for start in range(0, len(dataset), step):
        rows[start : start + step] = dataset[start : start + step]
    return rows


def _memmap(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.memmap(path, dtype, "r", offset, shape)
    except OSError as error:  # a file system without shared mappings
        if error.errno != errno.ENODEV:
            raise
        rows = np.memmap(path, dtype, "c", offset, shape)
        rows.flags.writeable = False
        return rows


def scratch(shape: tuple[int, ...], dtype, folder: Path) -> np.ndarray:
    """A new array in an unnamed temporary file in `folder`, so it may be larger than memory.

    The system deletes the file when the process ends. On a file system that cannot be memory-mapped, it is in the system's
    folder of temporary files.

    Raises:
        GnimeError: the disk does not have room for it, or the folder cannot be written.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, Path(folder) / "scratch", size)  # so that a full disk is an error here, not at a later row
            return np.memmap(file, dtype, "r+", shape=tuple(shape))
    except OSError as error:
        other = Path(tempfile.gettempdir())
        if error.errno == errno.ENODEV and folder != other:  # a file system without shared mappings
            return scratch(shape, dtype, other)
        raise GnimeError(f"{folder}: no room for a scratch file of {size / 1e9:.1f} GB ({error.strerror})") from None
