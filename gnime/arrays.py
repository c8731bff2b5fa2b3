"""Arrays on disk: hickle files that are written and read by slices, whatever their size, and checked.

`hickle.load` opens them. This module reads them through h5py alone: nothing in a file is unpickled. The rows of a
file of ours are one contiguous block, so reading maps it into memory and the system's page cache does the rest.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .errors import GnimeError
from .store import writing

LAYOUT = 2  # of an array's file; raised when an older file can no longer be read
CRC_BLOCK = 1 << 20  # bytes under one CRC-32; the digest is the SHA-256 of record, shape and these
RECORD = "gnime"
SEAL = 512  # bytes before the HDF5 file proper, which HDF5 leaves to its users: ours hold the checksums
MAGIC = b"gnime array\n"
ATTRIBUTE_LIMIT = 60_000  # bytes; HDF5 keeps larger attributes elsewhere


@dataclass
class Array:
    """Rows of a file, mapped, never copied whole. `record` is None for somebody else's file."""

    path: Path
    rows: np.ndarray
    record: dict | None
    digest: str


class Writer:
    """Receives an array's rows in order; see `create`."""

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
            raise AssertionError(f"{self._next} rows of {len(self._dataset)}")
        return self._crcs + ([zlib.crc32(self._rest)] if self._rest else [])


@contextlib.contextmanager
def create(path: Path, shape: tuple[int, ...], dtype: str, record: dict) -> Iterator[Writer]:
    """A new file that appears under `path` when the block has written all rows of `shape`."""
    import hickle

    dtype = np.dtype(dtype)
    text = json.dumps(record).encode("ascii")
    with writing(path) as part:
        _reserve(part, int(np.prod(shape)) * dtype.itemsize + 2 * len(text) + (1 << 18))
        part.unlink()
        with h5py.File(part, "w", userblock_size=SEAL) as file:
            hickle.dump(np.zeros((0, *shape[1:]), dtype), file)  # hickle's frame, around rows that h5py writes
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
        seal = {"layout": LAYOUT, "offset": offset, "bytes": nbytes, "digest": digest,
                "rest": _digest_around(part, offset, nbytes)}
        with part.open("r+b") as file:
            file.write((MAGIC + json.dumps(seal).encode()).ljust(SEAL, b"\n"))


def _reserve(path: Path, size: int) -> None:
    """Finds out now whether the disk has room: libhdf5 does not survive a disk that fills while it writes."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _digest(record: dict, shape: tuple[int, ...], dtype: str, crcs: list[int]) -> str:
    head = json.dumps([LAYOUT, record, list(shape), np.dtype(dtype).str], sort_keys=True).encode()
    return hashlib.sha256(head + np.asarray(crcs, "<u4").tobytes()).hexdigest()


def _digest_around(path: Path, offset: int, nbytes: int) -> str:
    """SHA-256 of a file without its seal and its rows: what libhdf5 will read and might choke on."""
    with path.open("rb") as file:
        file.seek(SEAL)
        hasher = hashlib.sha256(file.read(offset - SEAL))
        file.seek(offset + nbytes)
        hasher.update(file.read())
    return hasher.hexdigest()


def _checksums(rows: np.ndarray) -> list[int]:
    data = rows.reshape(-1).view(np.uint8) if rows.size else np.zeros(0, np.uint8)
    with ThreadPoolExecutor(4) as pool:  # zlib lets go of the interpreter
        return list(pool.map(lambda i: zlib.crc32(data[i : i + CRC_BLOCK]), range(0, len(data), CRC_BLOCK)))


def load(path: Path) -> Array:
    """Opens an array's file and checks it whole: its structure before libhdf5 sees it, its rows after.

    Raises:
        GnimeError: it is damaged, holds anything but one array of numbers, or its data lie in another file.
    """
    remedy = "remove it and run prepare.py again"
    damaged = f"{path}: damaged (its checksum does not fit); {remedy}"
    try:
        seal = _read_seal(path)
        if seal is not None and seal["layout"] != LAYOUT:
            raise GnimeError(f"{path}: written in layout {seal['layout']}, this version reads {LAYOUT}; {remedy}")
        if seal is not None and _digest_around(path, seal["offset"], seal["bytes"]) != seal["rest"]:
            raise GnimeError(damaged)
        with h5py.File(path, "r") as file:
            dataset = _only_dataset(file)
            rows, record = _map(path, dataset), _record(file)
    except GnimeError:
        raise
    except PermissionError:
        raise GnimeError(f"{path}: cannot be read; mend its permissions") from None
    except Exception as error:  # whatever a damaged or hostile file makes the reader say
        reason = str(error) if isinstance(error, ValueError) else "it is damaged"
        reason = " ".join(reason.split())[:200]
        raise GnimeError(f"{path}: not a hickle file with one array of numbers ({reason}); {remedy}") from None
    digest = _digest(record or {}, rows.shape, rows.dtype.str, _checksums(rows))
    if (seal is None) != (record is None) or (seal is not None and digest != seal["digest"]):
        raise GnimeError(damaged)
    return Array(path, rows, record, digest)


def _read_seal(path: Path) -> dict | None:
    with path.open("rb") as file:
        head = file.read(SEAL)
    return json.loads(head[len(MAGIC) :]) if head.startswith(MAGIC) else None


def _record(file: h5py.File) -> dict | None:
    if not any(name.startswith(RECORD) for name in file.attrs):
        return None
    return json.loads(b"".join(bytes(file.attrs[f"{RECORD}{i}"]) for i in range(int(file.attrs[RECORD]))))


def _only_dataset(file: h5py.File) -> h5py.Dataset:
    found = []
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
            found.append(file[name])
    if len(found) != 1:
        raise ValueError(f"{len(found)} arrays in it")
    dataset = found[0]
    if dataset.external or dataset.is_virtual:
        raise ValueError("its data lie in another file")
    if dataset.dtype.kind not in "uif" or dataset.dtype.hasobject:
        raise ValueError(f"its values are {dataset.dtype}")
    return dataset


def _map(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """The rows, mapped from the file where they lie as one block, else from an unnamed temporary copy."""
    size = path.stat().st_size
    offset = dataset.id.get_offset()
    if offset is not None and dataset.chunks is None:
        if offset + dataset.nbytes > size:
            raise ValueError("it is cut short")
        return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    if dataset.nbytes > 1000 * size:  # nothing real compresses like this
        raise ValueError(f"it claims {dataset.shape}, far more than it holds")
    rows = scratch(dataset.shape, dataset.dtype, path.parent)
    step = max(1, (64 << 20) // max(1, dataset.nbytes // max(1, len(dataset))))
    for start in range(0, len(dataset), step):
        rows[start : start + step] = dataset[start : start + step]
    return rows


def scratch(shape: tuple[int, ...], dtype, folder: Path) -> np.ndarray:
    """An array in a file without a name, which the system removes with the process: larger than memory may be."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found here, not at some later row
            return np.memmap(file, dtype, "r+", shape=tuple(shape))
    except OSError as error:
        raise GnimeError(f"{folder}: no room for a scratch file of {size / 1e9:.1f} GB ({error.strerror})") from None
