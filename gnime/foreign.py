"""Files of networks as PyTorch and other programs write them, brought to plain data. Nothing in them is executed."""

import json
import math
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from .errors import GnimeError, printable

DEPTH = 20  # of nested lists and dictionaries; ours have 7
EXPANDED = 16  # content may be so many times as large as its file, because names can share a tensor
REAL = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool}
SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
               "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")  # of training programs
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of DataParallel, torch.compile, Lightning

SAVE = "save its weights alone: torch.save(network.state_dict(), FILE)"
OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of PyTorch before 1.6 begin
KNOWN = {  # how a file begins: what it is, how to convert it
    OLD: ("in the format of PyTorch before 1.6", "convert it: torch.save(torch.load(FILE, weights_only=True), NEW)"),
    b"\x80": ("a pickle, which could hold code", SAVE),
    b"\x89HDF": ("an HDF5 file, as Keras writes", "convert its weights to a state dict of PyTorch"),
}
PARTS = {  # a part of an archive's name: likewise
    "constants.pkl": ("a TorchScript program", "convert it: torch.save(torch.jit.load(FILE).state_dict(), NEW)"),
    "archive_format": ("an exported program (.pt2)", "convert it: torch.save(torch.export.load(FILE).state_dict, NEW)"),
    "serialized_exported_program": ("an exported program (.pt2)",
                                    "convert it: torch.save(torch.export.load(FILE).state_dict, NEW)"),
}


def read(file: BinaryIO, path: Path, size: int) -> object:
    """The content of a file of PyTorch or of safetensors, `size` bytes: nested plain data and tensors on the CPU.

    Raises:
        GnimeError: it is damaged, of another format (the message names it, and how to convert it), or holds something else.
    """
    try:
        begin = file.read(9)
        file.seek(0)
        if begin.startswith(b"PK\x03\x04"):
            _check_archive(file, path, size)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        elif begin[8:] == b"{" and struct.unpack("<Q", begin[:8])[0] <= size:
            content = _safetensors(file)
        else:
            what = next((KNOWN[magic] for magic in KNOWN if begin.startswith(magic[:9])),
                        ("no file of PyTorch or safetensors, or damaged", "move it away"))
            raise _refused(path, *what)
    except GnimeError:
        raise
    except Exception as error:  # a damaged or hostile file can make the readers raise anything
        if "Unsupported" in str(error) or "WeightsUnpickler" in str(error):
            raise _refused(path, "it holds objects that could run code, such as a whole network", SAVE) from None
        raise _refused(path, "damaged", "move it away and run the command again") from None
    if _weigh(content, path, "", 0, {}) > EXPANDED * size:
        raise _refused(path, "its content is far more than the file holds", "move it away")
    return content


def _refused(path: Path, what: str, remedy: str) -> GnimeError:
    return GnimeError(f"{path}: not a file of tensors and plain data ({what}); {remedy}")


def _check_archive(file: BinaryIO, path: Path, size: int) -> None:
    """Names other formats, and refuses compressed parts, which could expand to more than memory holds. torch.save has none."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    for name, what in PARTS.items():
        if any(name in part.filename for part in parts):
            raise _refused(path, *what)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError("compressed parts")


def _safetensors(file: BinaryIO) -> dict:
    """Header length (8 bytes, little-endian), header (JSON), and the tensors' bytes, as the format's documentation has them."""
    (length,) = struct.unpack("<Q", file.read(8))
    header, body, tensors = json.loads(file.read(length)), file.read(), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        (start, end), shape, dtype = entry["data_offsets"], entry["shape"], SAFETENSORS[entry["dtype"]]
        if not 0 <= start <= end <= len(body) or math.prod(shape) * dtype.itemsize != end - start:
            raise ValueError(f"{name} does not fit")
        data = bytearray(body[start:end])  # a copy of its own, because tensors can be written to
        tensors[name] = (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(shape)
    return tensors


def _weigh(value: object, path: Path, name: str, depth: int, seen: dict[int, int]) -> int:
    """The bytes of a content, were nothing in it shared. A shared object is visited once.

    Raises:
        GnimeError: it is nested too deeply, or contains itself, or something in it is no plain data and no plain tensor.
    """
    if depth > DEPTH:
        raise _refused(path, "it is nested too deeply, or contains itself", "move it away")
    if isinstance(value, Tensor):
        _check_plain(value, path, name)
        return value.numel() * value.element_size()
    if isinstance(value, (dict, list, tuple)):
        if id(value) not in seen:
            pairs = value.items() if isinstance(value, dict) else ((name, inner) for inner in value)
            seen[id(value)] = sum(_weigh(inner, path, str(key)[:100], depth + 1, seen) for key, inner in pairs)
        return seen[id(value)]
    if not isinstance(value, (str, int, float, type(None))):
        raise _refused(path, f"{printable(name, 80)} is of type {type(value).__name__}", SAVE)
    return len(value) if isinstance(value, str) else 1


def _check_plain(tensor: Tensor, path: Path, name: str) -> None:
    fault = ""
    if tensor.layout != torch.strided or tensor.is_nested:
        fault = "sparse or nested"
    elif tensor.dtype not in REAL:
        fault = f"{tensor.dtype}"
    elif type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" or tensor.is_neg():
        fault = "a view or a subclass"
    if fault:
        raise _refused(path, f"{printable(name, 80)} is {fault}, not a plain tensor of real numbers", SAVE)


def state_dict(content: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """Names and tensors of a foreign network, and how the file was read, in words; empty where there is nothing to tell.

    The dictionaries that training programs save around them are opened. A prefix that all names share is dropped.

    Raises:
        GnimeError: there are no tensors with names, or those of more than one network.
    """
    notes = []
    while isinstance(content, dict) and (inner := [name for name in WRAPPERS if isinstance(content.get(name), dict)]):
        if len(inner) > 1:
            raise GnimeError(f"{path}: holds {' and '.join(inner)}; save the one that is meant, without the other")
        content = content[inner[0]]
        notes.append(f"its entry {inner[0]!r} is read")
    items = content.items() if isinstance(content, dict) else ()
    tensors = {name: value.detach() for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise GnimeError(f"{path}: neither a network that GNIME wrote nor a state dict; {SAVE}")
    if ignored := [printable(name, 40) for name, _ in items if name not in tensors]:
        notes.append(f"{', '.join(ignored[:5])} {'is' if len(ignored) == 1 else 'are'} no tensor and ignored")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) and name != p for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        notes.append(f"the prefix {prefix!r} of its names is dropped")
    return tensors, "; ".join(notes)
