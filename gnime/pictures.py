"""A picture's file as pixels: formats, colours, transparency, and what it may cost to decode."""

import math
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import GnimeError, printable
from .regular import open_regular
from .threads import processors

# Pillow's decoders in C. The others are slow, weakly recognised, or start programs (EPS starts Ghostscript).
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "SGI", "TIFF", "WEBP")
BY_SUFFIX = ("PCX", "TGA")  # hardly any bytes to recognise them by: opened where the suffix says so
LARGE = 1 << 24  # pixels; of larger pictures only the pixels that the small one needs become numbers
STRIP = 256  # rows at a time, where the numbers in between take more memory than the picture
MOST_BYTES = 1 << 30
MOST_SCANS, MOST_SCANNED = 100, 1 << 30  # of a progressive JPEG: its scans, and the pixels of all scans together
DARK = 1 << 14  # 16-bit values that are all below a quarter of the range are of fewer bits


@cache
def suffixes() -> frozenset[str]:
    """Endings of the names of pictures, in lower case, as Pillow knows them."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in FORMATS + BY_SUFFIX)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(n, C, H, W) uint8 -> (n, C, size, size) uint8: bilinear, half-pixel centres, no antialias (docs/method.md "Data")."""
    if images.shape[2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def decode(path: Path, channels: int, size: int) -> np.ndarray:
    """One picture as (channels, size, size) uint8.

    Grey, palette, CMYK and 16-bit pictures are converted, transparency becomes white, the first frame of an animation counts,
    and the camera's orientation is applied.

    Raises:
        GnimeError: the file is not a picture, is damaged, has values of unknown range, or costs too much to decode.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with open_regular(path) as file, Image.open(file, formats=_formats(path)) as opened:
                _check_cost(file, opened)
                with _decoding.share(math.prod(opened.size)):
                    pixels = _pixels(opened, channels, size)
    except UnidentifiedImageError:
        fault = "not a picture of a known format"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        fault = "too many pixels to be decoded safely"
    except Exception as error:  # a damaged file can make a decoder raise anything
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        fault = f"a damaged or unreadable picture ({printable(reason)})"
    else:
        return resize(torch.from_numpy(pixels)[None], size)[0].numpy()
    raise GnimeError(f"{printable(path, 1000)}: {fault}; put a good one there, or leave it out with --skip-bad")


@contextmanager
def decoders() -> Iterator[ThreadPoolExecutor]:
    """Threads that decode pictures, one for each core: Pillow's decoders release the GIL.

    PyTorch computes with one thread in each of them. It would start a team of threads for each picture, and these wait for each
    other longer than they work.
    """
    usual = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(processors(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(usual)  # of threads that start later; in this one it never changed


def _formats(path: Path) -> list[str]:
    own = Image.registered_extensions().get(path.suffix.lower())
    known = [*FORMATS, own] if own in BY_SUFFIX else FORMATS
    return [kind for kind in known if kind in Image.OPEN]  # Pillow may be built without some


class _Decoding:
    """Pictures that are being decoded: together they have at most as many pixels as the largest single one may have."""

    def __init__(self):
        self._changed, self._used = threading.Condition(), 0

    @contextmanager
    def share(self, pixels: int) -> Iterator[None]:
        most = Image.MAX_IMAGE_PIXELS
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + pixels <= most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_decoding = _Decoding()  # global, like the memory that it guards


def _check_cost(file: BinaryIO, opened: Image.Image) -> None:
    """Refuses files that are far too large, and JPEGs of so many scans that they take minutes."""
    at = file.tell()
    if file.seek(0, 2) > MOST_BYTES:
        raise ValueError("larger than 1 GB")
    if opened.format in ("JPEG", "MPO"):
        file.seek(0)
        scans, last = 0, b""
        while block := file.read(1 << 20):
            scans, last = scans + (last + block).count(b"\xff\xda"), block[-1:]
        if scans > MOST_SCANS or scans * math.prod(opened.size) > MOST_SCANNED:
            raise ValueError(f"a JPEG of {scans} scans")
    file.seek(at)


def _pixels(opened: Image.Image, channels: int, size: int) -> np.ndarray:
    """(channels, H, W) uint8. A large picture comes back with H = W = size."""
    deep = opened.mode.startswith("I") or any(";16" in str(tile[3]) for tile in opened.tile)
    scaled = opened.format == "PPM"  # its header names the largest value, and Pillow scales by it
    image = opened
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 bits")
    if deep:
        image = _eight_bits(image, sixteen=scaled or opened.format == "PNG" or image.mode.startswith("I;16"), scaled=scaled)
    if "A" in image.getbands() or "transparency" in image.info:
        image = _on_white(image)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if math.prod(image.size) > LARGE:  # the same pixels, of which Pillow rounds a few to the other side
        image = image.transform((size, size), Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _on_white(image: Image.Image) -> Image.Image:
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        image.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip), (0, top))
    return image


def _eight_bits(image: Image.Image, sixteen: bool, scaled: bool) -> Image.Image:
    """A picture of 16-bit values with 8 bits. The transparent colour becomes white.

    sixteen: the format has values from 0 to 65535. scaled: values of fewer bits were scaled to it.

    Raises:
        ValueError: the range of the values is unknown: they have 32 bits, or look like values of 8 to 14 bits.
    """
    if not image.mode.startswith("I"):  # colours, of which Pillow keeps the upper 8 bits
        if max(most for _, most in image.convert("RGB").getextrema()) < DARK >> 8:
            raise ValueError(f"16-bit values below {DARK} have no known range; save it with 8 bits, or scale it to 65535")
        if "transparency" in image.info:
            image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
        return image
    values = np.asarray(image)
    least, most = values.min(), values.max()
    if not sixteen:
        raise ValueError(f"32-bit integers ({least} to {most}) have no known range; save it with 8 bits")
    if 0 < most < DARK and not scaled:
        raise ValueError(f"16-bit values of at most {most} have no known range; save it with 8 bits, or scale it to 65535")
    eight = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):
        rows = values[top : top + STRIP].astype(np.int64)
        eight[top : top + STRIP] = (rows.clip(0, 65535) / 257).round()
        if "transparency" in image.info:
            eight[top : top + STRIP][rows == image.info["transparency"]] = 255
    return Image.fromarray(eight)
