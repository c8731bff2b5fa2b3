"""A reader of TensorFlow's checkpoints that needs no TensorFlow: PREFIX.index and PREFIX.data-00000-of-00001.

The index is a sorted table in LevelDB's layout, from names to entries. An entry says where the data file holds a tensor. One
entry is a graph of the objects that were saved, which says what each tensor is. Sources of the formats: LevelDB's
doc/table_format.md; TensorFlow's tensor_bundle.proto, tensor_bundle.cc and trackable_object_graph.proto; protobuf's encoding.

Nothing in the files is executed. Sizes are compared with the files before memory is taken, and every checksum is verified.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import GnimeError, printable
from ..store import open_artifact
from .crc32c import crc32c

MOST = 1 << 20  # bytes of an index, and of a graph of objects; those of the release have at most a few 10,000
MOST_NAME = 1000  # bytes of a name
MOST_AXES = 8
FOOTER, MAGIC = 48, 0xDB4775248B80FB57  # of LevelDB's tables
TRAILER = 5  # bytes after each block: how it is compressed, and its checksum
FLOAT32, STRING = 1, 7  # tensorflow.DataType
GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
VARIABLE = b"VARIABLE_VALUE"  # the attribute of a variable that is its value


@dataclass(frozen=True)
class Entry:
    """Where the data file holds a tensor.

    Attributes:
        kind: a number of tensorflow.DataType.
        shape: of the tensor.
        start, size: of its bytes in the data file.
        checksum: of these bytes, masked.
    """

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int
    checksum: int


class Bundle:
    """The tensors of a checkpoint, found by the objects that were saved.

    Raises:
        GnimeError: a file is missing, damaged, cut off, in another format, or larger than any of the release. The message names
            it. So do the methods.
    """

    def __init__(self, prefix: Path):
        self.index, self.data = (prefix.with_name(prefix.name + end) for end in (".index", ".data-00000-of-00001"))
        with _reading(self.index), open_artifact(self.index) as file:
            table = _table(file.read(MOST + 1))
            header = dict(_fields(table.pop(b"", b"")))
            if header.get(1) != 1 or header.get(2, 0) != 0:
                raise ValueError("it has more than one data file, or numbers of another byte order")
            self._entries = {name: _entry(message) for name, message in table.items()}
            if GRAPH not in self._entries:
                raise ValueError("it has no graph of objects")
        with _reading(self.data):
            entry = self._entries[GRAPH]
            if entry.kind != STRING or entry.size > MOST:
                raise ValueError("its graph of objects is no text, or larger than any of the release")
            text = self._bytes(entry)
            graph = _string(text)  # which checks the length that `_summed` writes in 4 bytes
            if _masked(_summed(text)) != entry.checksum:
                raise ValueError("a checksum does not fit")
            self._objects = _graph(graph)

    def layers(self, network: str = "") -> list[tuple[Entry, Entry]]:
        """Kernel and bias of each layer, in Keras's order.

        network: the attribute of the saved object that is the network; empty: the object itself.
        """
        found = []
        with _reading(self.index):
            top, _ = self._objects[self._objects[0][0][network.encode()] if network else 0]
            while (name := f"layer_with_weights-{len(found)}".encode()) in top:
                layer, _ = self._objects[top[name]]
                kernel, bias = (self._entries[self._objects[layer[part]][1][VARIABLE]] for part in (b"kernel", b"bias"))
                found.append((kernel, bias))
        return found

    def numbers(self, entry: Entry) -> np.ndarray:
        """The tensor of that entry, float32, read-only. The caller bounds its size by the shape that it expects."""
        with _reading(self.data):
            if entry.kind != FLOAT32 or entry.size != 4 * math.prod(entry.shape):
                raise ValueError("a kernel or bias is no array of float32, or its size is not that of its shape")
            data = self._bytes(entry)
            if _masked(data) != entry.checksum:
                raise ValueError("a checksum does not fit")
            return np.frombuffer(data, "<f4").reshape(entry.shape)

    def digest(self) -> str:
        """SHA-256 of both files, one after the other, in hexadecimal."""
        hasher = hashlib.sha256()
        for path in (self.index, self.data):
            with open_artifact(path) as file:
                while piece := file.read(MOST):
                    hasher.update(piece)
        return hasher.hexdigest()

    def _bytes(self, entry: Entry) -> bytes:
        with open_artifact(self.data) as file:
            if entry.start + entry.size > os.fstat(file.fileno()).st_size:
                raise ValueError("it is cut off")
            file.seek(entry.start)
            return file.read(entry.size)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Makes an error that a damaged or hostile file causes into a line that names the file."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        reason = printable(error) if isinstance(error, ValueError) else "it refers to what is not there, or of another kind"
        raise GnimeError(f"{path}: damaged, or no checkpoint of the authors' release ({reason}); put a whole one there, or "
                         "move it away") from None


def _masked(data: bytes) -> int:
    """LevelDB's masked checksum: rotated by 15 bits, plus a constant."""
    found = crc32c(data)
    return ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number has too many bytes")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message. Fixed values are those of their bits, messages are bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or _length(key, message, at)
        if at + size > len(message):
            raise ValueError("a message is cut off")
        value, at = message[at : at + size], at + size
        yield key >> 3, value if key & 7 == 2 else int.from_bytes(value, "little")


def _length(key: int, message: bytes, at: int) -> tuple[int, int]:
    if key & 7 != 2:
        raise ValueError("a message has a field of unknown kind")
    return _varint(message, at)


def _table(data: bytes) -> dict[bytes, bytes]:
    """Names and values of a table of LevelDB's layout. Blocks and names must be in order, so none is read twice."""
    if not FOOTER <= len(data) <= MOST:
        raise ValueError(f"an index has {FOOTER} to {MOST} bytes")
    if int.from_bytes(data[-8:], "little") != MAGIC:
        raise ValueError("it does not end as an index does")
    footer, at, handle = data[-FOOTER:], 0, []
    for _ in range(4):  # start and size of the block of filters, and of that of blocks
        value, at = _varint(footer, at)
        handle.append(value)
    found: dict[bytes, bytes] = {}
    last, end = None, 0
    for _, place in _block(data, handle[2], handle[3]):
        start, at = _varint(place, 0)
        size, _ = _varint(place, at)
        if start < end:
            raise ValueError("its blocks overlap")
        end = start + size
        for name, value in _block(data, start, size):
            if last is not None and name <= last:
                raise ValueError("its names are not in order")
            last = name
            found[name] = value
    return found


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Names and values of a block. A name is stored as the length that it shares with the one before, and the rest."""
    end = start + size
    if size < 4 or end + TRAILER > len(data):
        raise ValueError("a block is outside the file")
    if _masked(data[start : end + 1]) != int.from_bytes(data[end + 1 : end + TRAILER], "little"):
        raise ValueError("a checksum does not fit")
    if data[end] != 0:
        raise ValueError("its blocks are compressed, which those of the release are not")
    body = data[start:end]
    stop = size - 4 - 4 * int.from_bytes(body[-4:], "little")  # the offsets of whole names, and their number, are behind it
    at, name = 0, b""
    while at < stop:
        shared, at = _varint(body, at)
        fresh, at = _varint(body, at)
        length, at = _varint(body, at)
        if shared > len(name) or shared + fresh > MOST_NAME or at + fresh + length > stop:
            raise ValueError("a name is too long, or cut off")
        name = name[:shared] + body[at : at + fresh]
        yield name, body[at + fresh : at + fresh + length]
        at += fresh + length


def _entry(message: bytes) -> Entry:
    """A BundleEntryProto."""
    fields = dict(_fields(message))
    if fields.get(3, 0) != 0 or 7 in fields:
        raise ValueError("a tensor is in another file, or in slices")
    sizes = [dict(_fields(size)).get(1, 0) for number, size in _fields(fields.get(2, b"")) if number == 2]
    if len(sizes) > MOST_AXES:
        raise ValueError("a tensor has too many axes")
    return Entry(fields.get(1, 0), tuple(sizes), fields.get(4, 0), fields.get(5, 0), fields.get(6, 0))


def _string(data: bytes) -> bytes:
    """The one text in a tensor of texts: its length, the masked checksum of that, the text."""
    length, at = _varint(data, 0)
    if length != len(data) - at - 4:
        raise ValueError("a text is cut off")
    return data[at + 4 :]


def _summed(data: bytes) -> bytes:
    """What the checksum of such a tensor is of: the length as a number of 4 bytes, and the rest."""
    length, at = _varint(data, 0)
    return length.to_bytes(4, "little") + data[at:]


def _graph(message: bytes) -> list[tuple[dict[bytes, int], dict[bytes, bytes]]]:
    """A TrackableObjectGraph: of each object, the numbers of its named children, and the names in the index of its values."""
    found = []
    for number, item in _fields(message):
        if number == 1:
            parts = [(kind, dict(_fields(part))) for kind, part in _fields(item) if kind in (1, 2)]
            found.append(({part.get(2, b""): part.get(1, 0) for kind, part in parts if kind == 1},
                          {part.get(1, b""): part.get(3, b"") for kind, part in parts if kind == 2}))
    return found
