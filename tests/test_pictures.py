"""Pictures of unknown range, of strange formats, and those that cost too much."""

import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gnime import pictures
from gnime.errors import GnimeError, printable
from gnime.pictures import decode, suffixes

VALUES = np.tile(np.arange(0, 256, 16), (16, 1))  # (16, 16), up to 240


def png(values, colour, extra=b""):
    """A 16-bit PNG by hand. values (H, W, bands)."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("name", "array", "says"), [
    ("int32_of_8_bits.tif", VALUES.astype(np.int32), "0 to 240"), ("negative.tif", VALUES.astype(np.int32) - 1024, "-1024 to"),
    ("u16_of_8_bits.png", VALUES.astype(np.uint16), "at most 240"),
    ("u16_of_12_bits.tif", (VALUES * 16).astype(np.uint16), "at most 3840"),
    ("float.tif", (VALUES / 255).astype(np.float32), "floating-point")])
def test_an_unknown_range_is_named_and_not_guessed(tmp_path, name, array, says):
    Image.fromarray(array).save(tmp_path / name)
    with pytest.raises(GnimeError, match=f"{name}.*{says}.*no known range"):
        decode(tmp_path / name, 1, 16)


def test_sixteen_bit_colours_of_eight_bits_are_named(tmp_path):
    (tmp_path / "p.png").write_bytes(png(np.stack([VALUES] * 3, -1), 2))
    with pytest.raises(GnimeError, match="16-bit values below 16384 have no known range"):
        decode(tmp_path / "p.png", 3, 16)
    (tmp_path / "p.png").write_bytes(png(np.stack([VALUES * 257] * 3, -1), 2))
    assert (decode(tmp_path / "p.png", 3, 16)[1] == VALUES).all()


def test_known_ranges_and_black_are_used(tmp_path):
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "black.png")
    assert (decode(tmp_path / "black.png", 1, 16) == 0).all()
    (tmp_path / "p.pgm").write_bytes(b"P5 16 16 4095\n" + (VALUES // 8 * 16).astype(">u2").tobytes())  # which names the range
    expected = VALUES // 8 * 16 * 255 / 4095
    assert np.abs(decode(tmp_path / "p.pgm", 1, 16)[0] - expected).max() <= 0.51
    Image.frombytes("I;16B", (16, 16), (VALUES * 257).astype(">u2").tobytes()).save(tmp_path / "big_endian.tif")
    assert (decode(tmp_path / "big_endian.tif", 1, 16)[0] == VALUES).all()


def test_a_transparent_sixteen_bit_colour_becomes_white(tmp_path):
    values = VALUES * 257
    (tmp_path / "grey.png").write_bytes(png(values[..., None], 0, struct.pack(">H", 48 * 257)))
    assert (decode(tmp_path / "grey.png", 1, 16)[0] == np.where(VALUES == 48, 255, VALUES)).all()
    (tmp_path / "colour.png").write_bytes(png(np.stack([values] * 3, -1), 2, struct.pack(">HHH", *[48 * 257] * 3)))
    assert (decode(tmp_path / "colour.png", 3, 16) == np.where(VALUES == 48, 255, VALUES)).all()


def test_formats_are_those_of_the_known_suffixes(tmp_path, monkeypatch):
    assert {".jpg", ".jfif", ".jpe", ".png", ".pgm", ".pbm", ".webp", ".tga", ".jp2"} <= suffixes()
    assert not {".eps", ".ps", ".pdf", ".wmf", ".h5", ".mpg"} & suffixes()
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: started.append(a))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "p.png").write_bytes(script)
    with pytest.raises(GnimeError, match="not a picture of a known format"):
        decode(tmp_path / "p.png", 3, 16)
    assert not started
    Image.new("RGB", (16, 16), (9, 8, 7)).save(tmp_path / "p.tga")  # no bytes to recognise it by: its suffix says so
    assert decode(tmp_path / "p.tga", 3, 16)[:, 3, 3].tolist() == [9, 8, 7]
    (tmp_path / "p.tga").rename(tmp_path / "q.png")
    with pytest.raises(GnimeError, match="not a picture"):
        decode(tmp_path / "q.png", 3, 16)


def test_a_pipe_or_a_folder_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(GnimeError, match=rf"{name}.*no regular file"):
            decode(tmp_path / name, 3, 16)


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    path = tmp_path / "p.jpg"
    Image.effect_noise((64, 64), 50).save(path, progressive=True)
    assert decode(path, 1, 16).shape == (1, 16, 16)
    data = path.read_bytes()
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    path.write_bytes(data[:end] + data[start:end] * 200 + data[end:])
    with pytest.raises(GnimeError, match="a JPEG of 20[0-9] scans"):
        decode(path, 1, 16)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_large_pictures_are_sampled_in_the_same_way(tmp_path, monkeypatch, mode):
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    if mode == "RGBA":
        image.putalpha(Image.effect_noise((300, 200), 60))
    image.convert(mode).save(tmp_path / "p.png")
    small = decode(tmp_path / "p.png", 3, 32).astype(int)
    monkeypatch.setattr(pictures, "LARGE", 1000)
    monkeypatch.setattr(pictures, "STRIP", 7)
    assert np.abs(decode(tmp_path / "p.png", 3, 32) - small).max() <= 1


def test_pictures_that_are_decoded_at_once_share_the_pixels_of_one(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    decoding, inside, most = pictures._Decoding(), [], []

    def work(pixels):
        with decoding.share(pixels):
            inside.append(pixels)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(pixels)

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (40, 60, 50, 100, 30, 70, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 7 and max(most) <= 100


def test_text_of_strangers_is_cut_and_cleaned():
    assert printable("café 写真") == "café 写真"
    assert printable("caf\udce9\n\x1b[31m\u202e") == r"caf\udce9\n\x1b[31m\u202e"
    assert len(printable("x" * 999)) == 200


def test_decoders_run_at_once_with_one_thread_of_pytorch_each(monkeypatch):
    monkeypatch.setattr(pictures, "processors", lambda: 3)
    usual, together = torch.get_num_threads(), threading.Barrier(3)
    torch.set_num_threads(2)
    try:
        with pictures.decoders() as pool:
            assert list(pool.map(lambda _: (together.wait(10), torch.get_num_threads())[1], range(3))) == [1, 1, 1]
            assert torch.get_num_threads() == 2
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(usual)
