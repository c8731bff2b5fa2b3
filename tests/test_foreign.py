"""Networks' files as others save them: their values come back, or they are refused by name with what to do."""

import errno
import fcntl
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import hickle
import numpy as np
import pytest
import torch

from gnime import arrays
from gnime.checkpoints import load_checkpoint, load_into, save_checkpoint
from gnime.config import target
from gnime.errors import GnimeError
from gnime.networks import build, classifier_spec, rebuild

VALUES = {"conv0.weight": torch.arange(6.0).view(1, 1, 2, 3) / 8, "conv0.bias": torch.tensor([-1.5]),
          "steps": torch.tensor(3)}


def prefixed(prefix):
    return {prefix + name: value for name, value in VALUES.items()}


def safetensors(path, tensors=VALUES, **changes):
    """By the format's description: length of the header, header, bytes."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, value in tensors.items():
        data = value.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(data)]} | changes
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(("saved", "told"), [
    (VALUES, ""), (prefixed("module."), "'module.'"), (prefixed("module._orig_mod."), "'_orig_mod.'"),
    ({"epoch": 3, "state_dict": VALUES, "best": 0.9}, "'state_dict'"), ({"model": VALUES}, "'model'"),
    ({"state_dict": prefixed("model."), "hyper_parameters": {"lr": 1}}, "'model.'"),
    (VALUES | {"name": "mine", "version": 2}, "name, version are no tensor and ignored"),
    ({name: torch.nn.Parameter(value) if value.is_floating_point() else value for name, value in VALUES.items()}, "")],
    ids=["plain", "module", "compiled", "wrapped", "model", "lightning", "extra", "parameters"])
def test_what_training_programs_save_is_read(tmp_path, saved, told):
    torch.save(saved, tmp_path / "a.pt")
    found = load_checkpoint(tmp_path / "a.pt")
    assert list(found.tensors) == list(VALUES) and not found.ours
    assert all(found.tensors[name].equal(value) and not found.tensors[name].requires_grad for name, value in VALUES.items())
    assert told in found.notes and bool(found.notes) == bool(told)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7), (torch.float64, 2**-23)])
def test_weights_of_another_precision_become_the_networks(tmp_path, dtype, digits):
    network, theirs = (build(classifier_spec(target("digits"), 10), seed) for seed in (0, 1))
    torch.save({name: value.to(dtype) for name, value in theirs.state_dict().items()}, tmp_path / "a.pt")
    load_into(network, load_checkpoint(tmp_path / "a.pt"), tmp_path / "a.pt")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=digits, atol=1e-7)


def test_safetensors_are_read(tmp_path):
    safetensors(tmp_path / "a.pt")
    found = load_checkpoint(tmp_path / "a.pt")
    assert all(found.tensors[name].equal(value) for name, value in VALUES.items())
    found.tensors["conv0.bias"] += 1  # its memory is its own
    assert found.tensors["conv0.weight"].equal(VALUES["conv0.weight"])
    for changes in ({"data_offsets": [0, 1 << 40]}, {"shape": [1 << 40]}, {"data_offsets": [-8, 16]}, {"dtype": "F4"}):
        safetensors(tmp_path / "a.pt", **changes)
        with pytest.raises(GnimeError, match=r"a.pt: .*damaged"):
            load_checkpoint(tmp_path / "a.pt")


def archive(path, part):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(part, b"")


def itself():
    content = [1]
    content.append(content)
    return content


def doubling():
    content = [1.0]
    for _ in range(15):
        content = [content] * 9
    return content


def nested(depth):
    content = 1
    for _ in range(depth):
        content = [content]
    return content


BIG = torch.zeros(1 << 14)
FILES = {
    "old": (lambda p: torch.save(VALUES, p, _use_new_zipfile_serialization=False), "before 1.6.*weights_only=True"),
    "torchscript": (lambda p: archive(p, "a/constants.pkl"), r"TorchScript.*jit\.load"),
    "pt2": (lambda p: archive(p, "a/archive_format"), r"exported program.*export\.load"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps([1])), r"pickle.*network\.state_dict\(\)"),
    "keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5"),
    "whole": (lambda p: torch.save(torch.nn.Linear(2, 2), p), r"whole network.*network\.state_dict\(\)"),
    "text": (lambda p: p.write_text("not a network"), "no file of PyTorch or safetensors"),
    "empty": (lambda p: p.write_bytes(b""), "no file of PyTorch"),
    "sparse": (lambda p: torch.save({"w": torch.eye(3).to_sparse()}, p), "w is sparse"),
    "complex": (lambda p: torch.save({"w": torch.zeros(3, dtype=torch.complex64)}, p), r"w is torch\.complex64"),
    "float8": (lambda p: torch.save({"w": torch.zeros(3).to(torch.float8_e4m3fn)}, p), r"w is torch\.float8"),
    "quantised": (lambda p: torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, p),
                  r"w is torch\.q"),
    "two": (lambda p: torch.save({"model": VALUES, "state_dict": VALUES}, p), "holds state_dict and model"),
    "none": (lambda p: torch.save({"epoch": 3}, p), "neither a network"),
    "stride zero": (lambda p: torch.save({"w": torch.zeros(1).expand(1 << 30)}, p), "more than the file holds"),
    "one tensor, many names": (lambda p: torch.save({f"w{i}": BIG for i in range(5000)}, p), "more than the file holds"),
    "itself": (lambda p: torch.save({"w": itself()}, p), "contains itself"),
    "shared": (lambda p: torch.save({"w": doubling()}, p), "more than the file holds"),
    "deep": (lambda p: torch.save({"w": nested(200)}, p), "nested too deeply"),
    "set": (lambda p: torch.save({"w": bytearray(3)}, p), "bytearray|could run code"),
    "folder": (lambda p: p.mkdir(), "not a regular file"),
    "pipe": (lambda p: os.mkfifo(p), "not a regular file"),
    "escapes": (lambda p: torch.save({"\x1b[31m" + "x" * 500: torch.eye(2).to_sparse()}, p), r"\\x1b"),
}


@pytest.mark.parametrize("kind", FILES)
def test_others_are_refused_by_name(tmp_path, kind):
    make, words = FILES[kind]
    make(tmp_path / "a.pt")
    with pytest.raises(GnimeError, match=words) as refused:
        load_checkpoint(tmp_path / "a.pt")
    text = str(refused.value)
    assert "a.pt: " in text and "remove" not in text, "it is not ours"
    assert text.isprintable() and len(text) < 400


def test_an_error_of_the_system_is_told_as_it_is(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(116, "Stale file handle")

    torch.save(VALUES, tmp_path / "a.pt")
    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(GnimeError, match="Stale file handle") as refused:
        load_checkpoint(tmp_path / "a.pt")
    assert "remove" not in str(refused.value) and "damaged" not in str(refused.value)


@pytest.mark.parametrize(("change", "words"), [
    ({"hidden": 1 << 26}, "does not fit: fc0"), ({"convs": [1 << 20] * 3}, "does not fit"), ({"hidden": -1}, "of no network"),
    ({"image": "x"}, "of no network"), ({"more": 1}, "of no network"), ({"network": []}, "does not say which")])
def test_a_specification_is_compared_before_memory_is_taken(tmp_path, change, words):
    """On the device "meta", where a layer of 2^26 times 2^10 numbers costs nothing."""
    spec = classifier_spec(target("digits"), 10)
    tensors = build(spec).state_dict()
    save_checkpoint(tmp_path / "a.pt", tensors, spec | change, {"seed": 1}, {})
    with pytest.raises(GnimeError, match=words):
        rebuild(tmp_path / "a.pt")
    save_checkpoint(tmp_path / "a.pt", tensors, spec, {"seed": 1}, {})
    assert rebuild(tmp_path / "a.pt").state_dict()["fc0.weight"].equal(tensors["fc0.weight"])
    tensors["fc0.weight"] = tensors["fc0.weight"].double() * 1e300  # finite, but not in the network's type
    save_checkpoint(tmp_path / "a.pt", tensors, spec, {"seed": 1}, {})
    with pytest.raises(GnimeError, match=r"fc0\.weight holds numbers that are not finite"):
        rebuild(tmp_path / "a.pt")


@pytest.mark.parametrize("parts", [
    ([], {}, {}, {}), ({}, None, {}, {}), ({}, {}, [], {}), ({}, {}, {}, "x"), ({}, {}, {}, {"epochs": "x"})])
def test_a_forged_record_is_damaged(tmp_path, parts):
    """Its checksum fits, because it is no secret."""
    save_checkpoint(tmp_path / "a.pt", *parts)
    with pytest.raises(GnimeError, match=r"a\.pt: damaged"):
        load_checkpoint(tmp_path / "a.pt")


def test_weights_whose_maps_are_not_finite_seal_nothing(scripts, root_copy):
    """They are finite themselves, but their products are not."""
    path = root_copy / "models/victim/digits.pt"
    torch.save({name: value * 1e30 for name, value in load_checkpoint(path).tensors.items()}, path)
    (root_copy / "aux/digits_lrp.hkl").unlink()
    code, line = scripts.fails("prepare", root_copy)
    assert code == 1 and "weights are not sound" in line and not (root_copy / "aux/digits_lrp.hkl").exists()


def test_ones_own_images_are_kept_where_their_labels_are_missing(scripts, root_copy):
    for kept, gone in (("imgs", "labels"), ("labels", "imgs")):
        path, other = (root_copy / f"aux/digits_{name}.hkl" for name in (kept, gone))
        saved, rows = (path.read_bytes(), other.read_bytes()), hickle.load(path)
        hickle.dump(rows, path, mode="w")
        other.unlink()
        own = path.read_bytes()
        for script in ("prepare", "train"):
            code, line = scripts.fails(script, root_copy)
            assert code == 1 and f"digits_{gone}.hkl is missing" in line and "so it is kept" in line
        assert path.read_bytes() == own and not other.exists()
        path.write_bytes(saved[0])
        if kept == "imgs":  # ours: the labels were lost between the two files, and both are made anew
            assert scripts("prepare", root_copy)[0] == 0
            assert (path.read_bytes(), other.read_bytes()) == saved
        other.write_bytes(saved[1])


def test_an_array_that_is_open_elsewhere_is_no_damaged_one(tmp_path):
    path = tmp_path / "a.hkl"
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    with arrays.create(path, rows.shape, "float32", {"kind": "test"}) as writer:
        writer.write(rows)
    with h5py.File(path, "r+"), pytest.raises(GnimeError, match=r"a\.hkl: another program has it open for writing; close it"):
        arrays.load(path)
    assert np.array_equal(arrays.load(path).rows, rows)
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)  # as a second run of ours
        assert np.array_equal(arrays.load(path).rows, rows)
    for make in (lambda: os.mkfifo(tmp_path / "pipe"), lambda: (tmp_path / "folder").mkdir()):
        make()
    for name in ("pipe", "folder"):
        with pytest.raises(GnimeError, match="not a regular file|Is a directory"):
            arrays.load(tmp_path / name)


def test_arrays_where_shared_mappings_are_lacking(tmp_path, monkeypatch):
    real = np.memmap

    def private(file, dtype, mode, *rest, **named):
        if mode == "r" or (mode == "r+" and str(tmp_path) in str(Path(f"/proc/self/fd/{file.fileno()}").readlink())):
            raise OSError(errno.ENODEV, "No such device")
        return real(file, dtype, mode, *rest, **named)

    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    with arrays.create(tmp_path / "a.hkl", rows.shape, "float32", {"kind": "test"}) as writer:
        writer.write(rows)
    monkeypatch.setattr(np, "memmap", private)
    found = arrays.load(tmp_path / "a.hkl").rows
    assert np.array_equal(found, rows) and not found.flags.writeable
    made = arrays.scratch((4, 2), np.float32, tmp_path)
    made[:] = 7
    assert made.sum() == 56
