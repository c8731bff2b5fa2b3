"""Files that a stranger could hand over: each would leave a mark if anything in it ran."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import h5py
import hickle
import numpy as np
import torch
from PIL import Image


class Bomb:
    """Unpickled, it makes the file `mark`."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def networks(folder: Path, mark: Path) -> list[Path]:
    """Checkpoints with code in them, or that claim more than they hold."""
    made = []

    def add(name: str) -> Path:
        made.append(folder / name)
        return made[-1]

    torch.save(Bomb(mark), add("zip.pt"))
    torch.save(Bomb(mark), add("legacy.pt"), _use_new_zipfile_serialization=False)
    torch.save({"weight": torch.zeros(3), "extra": Bomb(mark)}, add("inside_a_dict.pt"))
    add("plain_pickle.pt").write_bytes(pickle.dumps(Bomb(mark)))
    torch.save(torch.nn.Linear(2, 2), add("whole_module.pt"))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(add("torchscript.pt")))
    torch.save({"weight": torch.zeros(1).expand(1 << 40)}, add("stride_zero.pt"))
    torch.save({"gnime": 1, "tensors": {}}, add("half_a_record.pt"))
    torch.save({"gnime": 999, "tensors": {}, "spec": {}, "made_by": {}, "extra": {}, "identity": "", "checksum": ""},
               add("other_layout.pt"))
    torch.save({"weight": torch.zeros(2, 2).to_sparse()}, add("sparse.pt"))
    torch.save([1, 2, 3], add("list.pt"))
    good = io.BytesIO()
    torch.save({"weight": torch.zeros(1 << 20)}, good)
    with zipfile.ZipFile(add("compressed.pt"), "w", zipfile.ZIP_DEFLATED) as packed, zipfile.ZipFile(good) as source:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with tarfile.open(add("tar.pt"), "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"), io.BytesIO(pickle.dumps(Bomb(mark))))
    add("empty.pt").write_bytes(b"")
    add("text.pt").write_text("not a network")
    return made


def arrays(folder: Path, mark: Path) -> list[Path]:
    """Hickle and HDF5 files with pickles, links elsewhere and absurd claims."""
    made = []

    def add(name: str) -> Path:
        made.append(folder / name)
        return made[-1]

    hickle.dump({"a": 1}, add("dict.hkl"), mode="w")
    with h5py.File(add("pickled.hkl"), "w") as file:
        hickle.dump(np.zeros(4), file)
        del file["data"]
        dataset = file.create_dataset("data", data=np.void(pickle.dumps(Bomb(mark))))
        dataset.attrs["type"] = np.void(pickle.dumps(Bomb(mark)))
    outside = folder / "outside.raw"
    outside.write_bytes(bytes(4096))
    with h5py.File(add("external.hkl"), "w") as file:
        file.create_dataset("data", (4096,), "u1", external=[(str(outside), 0, 4096)])
    with h5py.File(folder / "other.h5", "w") as file:
        file["data"] = np.zeros(10)
    with h5py.File(add("external_link.hkl"), "w") as file:
        file["data"] = h5py.ExternalLink(str(folder / "other.h5"), "/data")
    with h5py.File(add("soft_link.hkl"), "w") as file:
        file["data"] = h5py.SoftLink("/data")
    with h5py.File(add("virtual.hkl"), "w") as file:
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "data", (10,))
        file.create_virtual_dataset("data", layout)
    with h5py.File(add("absurd_chunks.hkl"), "w") as file:
        file.create_dataset("data", (1 << 40, 1 << 10), "f8", chunks=(1, 1 << 10))
    with h5py.File(add("objects.hkl"), "w") as file:
        file.create_dataset("data", data=["a", "b"], dtype=h5py.string_dtype())
    with h5py.File(add("empty_file.hkl"), "w"):
        pass
    add("text.hkl").write_text("not HDF5")
    add("pickle.hkl").write_bytes(pickle.dumps(Bomb(mark)))
    add("empty.hkl").write_bytes(b"")
    return made


def pictures(folder: Path) -> list[tuple[Path, bool]]:
    """Pictures with whether they can be used."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (20, 24), np.uint8))
    colour = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    made = []

    def add(name: str, good: bool, image: Image.Image | None = None, data: bytes | None = None, **how) -> None:
        path = folder / name
        if image is not None:
            image.save(path, **how)
        elif data is not None:
            path.write_bytes(data)
        made.append((path, good))

    add("grey.png", True, grey)
    add("binary.png", True, grey.convert("1"))
    add("palette.gif", True, colour.convert("P"))
    add("palette_transparent.png", True, colour.convert("P"), transparency=0)
    add("rgba.png", True, colour.convert("RGBA"))
    add("grey_alpha.png", True, grey.convert("LA"))
    add("sixteen_bit.png", True, Image.fromarray(rng.integers(0, 65536, (20, 24), np.uint16)))
    add("cmyk.jpg", True, colour.convert("CMYK"))
    add("ycbcr.jpg", True, colour.convert("YCbCr"))
    add("one_pixel.png", True, grey.crop((0, 0, 1, 1)))
    add("long.png", True, grey.resize((4000, 1)))
    add("animated.gif", True, grey, save_all=True, append_images=[grey, grey])
    add("ein Bild, ÄÖ 写真 🙂.png", True, grey)
    add("UPPER.PNG", True, grey)
    add("empty.png", False, data=b"")
    add("text.jpg", False, data=b"not a picture at all")
    whole = io.BytesIO()
    colour.save(whole, "JPEG")
    add("truncated.jpg", False, data=whole.getvalue()[: len(whole.getvalue()) // 2])
    whole = io.BytesIO()
    grey.save(whole, "PNG")
    add("truncated.png", False, data=whole.getvalue()[:60])
    bomb = bytearray(whole.getvalue())
    bomb[16:24] = struct.pack(">II", 60000, 60000)  # the header claims 3.6 thousand million pixels
    add("bomb.png", False, data=bytes(bomb))
    add("float.tiff", False, Image.fromarray(rng.random((20, 24)).astype(np.float32)))
    add("script.png", False, data=b"#!/bin/sh\nexit\n")
    loop = folder / "loop.png"
    loop.symlink_to(loop)
    made.append((loop, False))
    gone = folder / "gone.png"
    gone.symlink_to(folder / "nowhere.png")
    made.append((gone, False))
    return made
