"""Arrays of numbers in .npy files of other people, memory-mapped. Nothing in them is unpickled."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import GnimeError, brief, printable
from .regular import open_regular

ORDERS = {"N, C, H, W": (0, 1, 2, 3), "N, H, W, C": (0, 3, 1, 2)}  # of axes, and how they become the first one
MOST_HEADER = 1 << 16  # bytes; numpy reads the length that a header claims before it refuses it, which may be 4 GB


def load(path: Path) -> np.ndarray:
    """The array in a file, read-only and memory-mapped. Any order and width of bytes, rows or columns first.

    Raises:
        GnimeError: the file is missing, damaged or no .npy file, or holds something else than real numbers.
    """
    try:
        with open_regular(path) as file:  # a pipe would make numpy wait
            _check_header(file.read(12))
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise GnimeError(f"{path}: no such file") from None
    except OSError as error:
        raise GnimeError(f"{path}: cannot be read ({error.strerror or printable(error)})") from None
    except Exception as error:  # a damaged or hostile header can make numpy raise anything
        if "Python objects" in str(error) or "pickle" in str(error):
            raise GnimeError(f"{path}: holds Python objects, or is no .npy file; they are never unpickled: save an array of "
                             "numbers with np.save") from None
        raise GnimeError(f"{path}: not a whole .npy file ({printable(brief(error))}); save it again with np.save") from None
    if not isinstance(array, np.ndarray):
        raise GnimeError(f"{path}: an archive of arrays (.npz); save each array in a file of its own with np.save")
    if array.dtype.kind not in "fiub":
        raise GnimeError(f"{path}: its values are {printable(array.dtype, 60)}, not real numbers")
    return array


def _check_header(start: bytes) -> None:
    """start: the first 12 bytes: magic, version, and the header's length, in 2 bytes in version 1 and in 4 later."""
    end = 10 if start[6:7] == b"\1" else 12
    if start.startswith(b"\x93NUMPY") and int.from_bytes(start[8:end], "little") > MOST_HEADER:
        raise ValueError("its header is too long")


@dataclass(frozen=True)
class Pictures:
    """The pictures or maps in a file.

    Attributes:
        array: as the file has it.
        order: of its axes, one of `ORDERS`, or "N, H, W" where the only channel has no axis.
    """

    path: Path
    array: np.ndarray
    order: str

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one: channels, side, side."""
        return self[:0].shape[1:]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows (k, C, S, S) of the file's own type: of a slice a view of the file, of indices a copy in memory."""
        found = np.asarray(self.array[rows])
        return found[:, None] if self.order == "N, H, W" else found.transpose(ORDERS[self.order])


def pictures(path: Path) -> Pictures:
    """The square pictures in a file: (N, C, S, S), (N, S, S, C) or (N, S, S). Where both may be, channels are first.

    Raises:
        GnimeError: `load` does, or they have another shape.
    """
    array = load(path)
    shape = array.shape
    if 0 in shape[1:]:
        order = ""
    elif len(shape) == 3 and shape[1] == shape[2]:
        order = "N, H, W"
    elif len(shape) == 4 and shape[2] == shape[3]:
        order = "N, C, H, W"
    else:
        order = "N, H, W, C" if len(shape) == 4 and shape[1] == shape[2] else ""
    if not order:
        raise GnimeError(f"{path}: shape {shape}; it must be (N, C, S, S), (N, S, S, C) or (N, S, S), that is square pictures: "
                         "crop or resize them to squares")
    return Pictures(path, array, order)
