"""Files that are damaged, hostile, locked or on a full disk: the quick forms of `python -m stress`."""

import json
import random
import subprocess
import time
from functools import partial
from pathlib import Path

import hickle
import numpy as np
import pytest
import torch
from works import hold_lock, run_scripts

from gnime import arrays
from gnime.checkpoints import load_checkpoint, save_checkpoint
from gnime.cli import resolve
from gnime.errors import GnimeError
from gnime.parallel import fork_context, run_side_by_side
from gnime.sources import decode
from gnime.store import artifact_lock, digest_of, inside, prepare_root, write_text, writing
from stress import malice
from stress.child import mutate

REPOSITORY = Path(__file__).parent.parent


def make_array(path, n=300, seed=0, record=None):
    rows = np.random.default_rng(seed).random((n, 1, 8, 8), np.float32)
    with arrays.create(path, rows.shape, "float32", record or {"kind": "test"}) as writer:
        for start in range(0, n, 70):
            writer.write(rows[start : start + 70])
    return rows


def make_checkpoint(path):
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(5, 7), "a.bias": torch.randn(5), "n": torch.tensor(3)}
    save_checkpoint(path, tensors, {"network": "x"}, {"seed": 1}, {"seconds": 2.5})
    return tensors


def test_arrays_come_back(tmp_path):
    rows = make_array(tmp_path / "a.hkl")
    loaded = arrays.load(tmp_path / "a.hkl")
    assert np.array_equal(loaded.rows, rows) and loaded.record == {"kind": "test"}
    assert isinstance(loaded.rows, np.memmap)
    assert np.array_equal(hickle.load(tmp_path / "a.hkl"), rows)


def test_array_digest_tells_rows_and_record_apart(tmp_path):
    digests = set()
    for i, (n, seed, record) in enumerate([(300, 0, None), (300, 1, None), (299, 0, None), (300, 0, {"kind": "other"})]):
        make_array(tmp_path / f"{i}.hkl", n, seed, record)
        digests.add(arrays.load(tmp_path / f"{i}.hkl").digest)
    assert len(digests) == 4


def test_large_records_survive(tmp_path):
    record = {"classes": [f"class {i} ß" for i in range(20000)]}
    make_array(tmp_path / "a.hkl", record=record)
    assert arrays.load(tmp_path / "a.hkl").record == record


def test_checkpoints_come_back(tmp_path):
    tensors = make_checkpoint(tmp_path / "a.pt")
    found = load_checkpoint(tmp_path / "a.pt")
    assert found.tensors.keys() == tensors.keys() and all(torch.equal(found.tensors[k], v) for k, v in tensors.items())
    assert (found.spec, found.made_by, found.extra) == ({"network": "x"}, {"seed": 1}, {"seconds": 2.5})


def test_digest_sees_order_shape_type_and_value():
    a, b = torch.arange(6.0), torch.arange(6.0).reshape(2, 3)
    contents = [{"a": a}, {"a": b}, {"a": a.double()}, {"a": a + 1}, {"b": a}, [a], {"a": [1, 2]}, {"a": [12]}, {"a": "1"}]
    assert len({digest_of(c) for c in contents}) == len(contents)
    assert digest_of({"a": b.T.contiguous().T}) == digest_of({"a": b})  # values, not strides


@pytest.mark.parametrize("make, name, read", [
    (make_array, "a.hkl", lambda p: (arrays.load(p).rows.tobytes(), arrays.load(p).record)),
    (make_checkpoint, "a.pt", lambda p: (digest_of(load_checkpoint(p).tensors), load_checkpoint(p).made_by))])
def test_damage_is_refused_or_harmless(tmp_path, make, name, read):
    """In a child each, because a damaged HDF5 file may take the process with it."""
    from stress.child import attempt

    make(tmp_path / name)
    data, original, rng = (tmp_path / name).read_bytes(), read(tmp_path / name), random.Random(1)
    refused = 0
    for _ in range(40):
        what, damaged = mutate(data, rng)
        path = tmp_path / "damaged" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damaged)

        def verdict(path=path):
            try:
                return 0 if read(path) == original else 3
            except GnimeError as error:
                return 1 if path.name in str(error) and "\n" not in str(error) else 4

        end = attempt(verdict)
        assert end.code in (0, 1), f"{what}: {end.code} {end.signal} {end.printed[-500:]}"
        refused += end.code
    assert refused > 20


def test_strangers_files_never_run(tmp_path):
    mark = tmp_path / "mark"
    for path in malice.networks(tmp_path, mark):
        with pytest.raises(GnimeError, match=path.name):
            load_checkpoint(path)
    for path in malice.arrays(tmp_path, mark):
        with pytest.raises(GnimeError, match=path.name):
            arrays.load(path)
    assert not mark.exists()


def test_the_malicious_files_do_run_where_they_are_trusted(tmp_path):
    """Otherwise the test above would prove nothing."""
    mark = tmp_path / "mark"
    malice.networks(tmp_path, mark)
    with pytest.raises(Exception, match=".*"):
        torch.load(tmp_path / "zip.pt", weights_only=False).no_such_attribute  # noqa: B018
    assert mark.exists()


def test_pictures_are_used_or_refused_by_name(tmp_path):
    for path, good in malice.pictures(tmp_path):
        if good:
            assert decode(path, 3, 16).shape == (3, 16, 16)
        else:
            with pytest.raises(GnimeError, match=path.name.split(".")[0]):
                decode(path, 3, 16)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(KeyError), writing(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_one_line_and_changes_nothing(small_disk):
    make_array(small_disk / "a.hkl")
    make_checkpoint(small_disk / "a.pt")
    before = [(small_disk / name).read_bytes() for name in ("a.hkl", "a.pt")]
    with pytest.raises(GnimeError, match="a.hkl: cannot be written"):
        make_array(small_disk / "a.hkl", n=20000)
    with pytest.raises(GnimeError, match="a.pt: cannot be written"):
        save_checkpoint(small_disk / "a.pt", {"w": torch.zeros(1 << 20)}, {}, {}, {})
    with pytest.raises(GnimeError, match="no room"):
        arrays.scratch((1 << 20, 8), np.float32, small_disk)
    assert [(small_disk / name).read_bytes() for name in ("a.hkl", "a.pt")] == before
    assert not list(small_disk.glob(".*.part"))


def test_a_read_only_disk_is_one_line(small_disk, capsys):
    from gnime.cli import main

    flags = ["--target", "digits", "--limit", "100", "--epochs", "1", "--gpu", "-1", "--root", str(small_disk)]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main("prepare", flags) == 1
    assert "--root" in capsys.readouterr().err


def test_links_out_of_the_root_are_refused(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / "models").symlink_to(elsewhere)
    with pytest.raises(GnimeError, match="leads out of --root"):
        prepare_root(resolve("prepare", ["--root", str(root)]))
    (root / "inner").symlink_to(root)
    assert inside(root / "inner" / "x", root)


def hold(path, seconds):
    """A process that holds the lock of an artifact."""
    context = fork_context()
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold_lock, args=(path, seconds, theirs))
    holder.start()
    assert ours.recv() == "held"
    return holder


def test_the_second_waits_and_says_for_whom(tmp_path, capsys):
    path = tmp_path / "a.pt"
    holder = hold(path, 1.0)
    began = time.monotonic()
    with artifact_lock(path, tmp_path):
        waited = time.monotonic() - began
    assert waited > 0.3 and f"process {holder.pid} is making it" in capsys.readouterr().out
    holder.join()
    assert holder.exitcode == 0


def test_a_dead_holder_blocks_nobody_and_its_leftovers_go(tmp_path):
    path = tmp_path / "a.pt"
    holder = hold(path, 60)
    left = [tmp_path / f".a.pt.{holder.pid}.part", tmp_path / f".a.state.pt.{holder.pid}.part"]
    other = tmp_path / ".ab.pt.1.part"
    for part in [*left, other]:
        part.write_text("half")
    holder.kill()
    holder.join()
    with artifact_lock(path, tmp_path):
        assert not any(part.exists() for part in left) and other.exists()


def test_a_folders_lock_leaves_the_work_of_its_other_artifacts(tmp_path):
    """A defence may be written beside an injector in training."""
    with artifact_lock(tmp_path / "prototypes-16.pt", tmp_path), writing(tmp_path / "prototypes-16.pt") as part:
        part.write_text("half")
        left = [tmp_path / f".{name}.7.part" for name in ("epoch_0050.png", "injector.pt", "injector.state.pt")]
        for other in left:
            other.write_text("half")
        with artifact_lock(tmp_path / "injector.pt", tmp_path, folder=True):
            assert part.exists() and not any(other.exists() for other in left)
    assert (tmp_path / "prototypes-16.pt").read_text() == "half"


def test_two_runs_at_once_make_one_set_of_artifacts(tmp_path):
    flags = ["--target", "digits", "--limit", "200", "--epochs", "2", "--gpu", "-1", "--root", str(tmp_path)]
    said = [tmp_path / f"{i}.txt" for i in range(2)]
    run_side_by_side([partial(run_scripts, [("prepare", flags)], file) for file in said], 2)
    outputs = [file.read_text() for file in said]
    assert sum("digits_lrp.hkl: made" in output for output in outputs) == 1
    victim, maps = load_checkpoint(tmp_path / "models/victim/digits.pt"), arrays.load(tmp_path / "aux/digits_lrp.hkl")
    assert maps.record["victim"] == victim.digest
    assert json.dumps(maps.record)
