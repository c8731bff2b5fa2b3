"""File systems that lack something, links, the environment that a shell or a cluster leaves, and closed streams."""

import contextlib
import errno
import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gnime import arrays, device, pipeline, store
from gnime.cli import resolve
from gnime.config import TrainConfig
from gnime.device import Device
from gnime.entries import Defence
from gnime.errors import GnimeError, UsageError
from gnime.networks import trained_less
from gnime.registry import COLOURS, DEFENCES, ROWS, Row, colour, title
from gnime.report import figures
from gnime.store import artifact_lock, prepare_root, write_text, writing
from gnime.streams import tell
from gnime.system import Interrupt, processes, say, stray_variables, warn

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _warned_anew():
    store._warn_once.cache_clear()


def failing(number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    return fails


# --- file systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve_or_synchronise(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    monkeypatch.setattr(os, "fsync", failing(number))
    rows = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    for name in ("a.hkl", "b.hkl"):
        with arrays.create(tmp_path / name, rows.shape, "float32", {"kind": "test"}) as writer:
            assert next(tmp_path.glob(f".{name}.*.part")).stat().st_size >= rows.nbytes, "there is room before rows come"
            writer.write(rows)
        assert np.array_equal(arrays.load(tmp_path / name).rows, rows)
    arrays.scratch((5, 2), np.float32, tmp_path)[:] = 1
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2 and all(str(tmp_path) in line for line in warned), "once each"


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_a_disk_that_fails_is_no_file_system_that_lacks_something(tmp_path, monkeypatch, call):
    write_text(tmp_path / "a.hkl", "before")
    monkeypatch.setattr(os, call, failing(errno.EIO))
    with (pytest.raises(GnimeError, match=r"a\.hkl: cannot be written \(Input/output error\); nothing was changed"),
          arrays.create(tmp_path / "a.hkl", (2, 3), "float32", {}) as writer):
        writer.write(np.zeros((2, 3)))
    assert (tmp_path / "a.hkl").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    (tmp_path / ".a.pt.1.part").write_text("perhaps another run's")
    for _ in range(2):
        with artifact_lock(tmp_path / "a.pt", tmp_path):
            write_text(tmp_path / "a.pt", "made")
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "no locks" in line
    assert (tmp_path / "a.pt").read_text() == "made" and (tmp_path / ".a.pt.1.part").exists()


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"), artifact_lock(tmp_path / "a.pt", tmp_path):
        pass


# --- links out of the root -------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("precious")
    (tmp_path / "outside/.injector.pt.7.part").write_text("precious")
    return tmp_path / "outside"


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "dangling link", "pipe", "folder"])
def test_a_lock_is_a_regular_file_of_one_link(outside, kind):
    root = outside.parent / "root"
    lock = root / ".a.pt.lock"
    {"symbolic link": lambda: lock.symlink_to(outside / "file"), "hard link": lambda: lock.hardlink_to(outside / "file"),
     "dangling link": lambda: lock.symlink_to(outside / "new"), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(GnimeError, match=r"\.a\.pt\.lock: a lock is a regular file of one link"), \
            artifact_lock(root / "a.pt", root):
        pass
    assert (outside / "file").read_text() == "precious" and not (outside / "new").exists()


def test_a_linked_folder_is_refused_before_anything_in_it_is_touched(outside):
    root = outside.parent / "root"
    before = {path: path.read_bytes() for path in outside.iterdir()}
    for folder in ("models/def/digits_lrp", "figures/digits_lrp", "models/inv", "aux"):
        link = root / folder
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_dir():
            link.rmdir()
        link.symlink_to(outside)
        with pytest.raises(GnimeError, match="leads out of --root"), artifact_lock(link / "injector.pt", root, folder=True):
            pass
        with pytest.raises(GnimeError, match="leads out of --root"):
            prepare_root(resolve("prepare", ["--root", str(root)]))
        link.unlink()
    assert {path: path.read_bytes() for path in outside.iterdir()} == before
    (outside.parent / "real").symlink_to(root)
    prepare_root(resolve("prepare", ["--root", str(outside.parent / "real")]))  # the root itself may be a link


def test_temporary_names_cannot_be_foreseen(outside, monkeypatch):
    root, names = outside.parent / "root", []
    for _ in range(2):
        with writing(root / "a.txt") as part:
            names.append(part)
            part.write_text("new")
    assert names[0] != names[1]
    monkeypatch.setattr(store.secrets, "token_hex", lambda n: "00")
    (root / ".a.txt.00.part").symlink_to(outside / "file")
    with pytest.raises(GnimeError, match="File exists"), writing(root / "a.txt"):
        pass
    assert (outside / "file").read_text() == "precious" and (root / "a.txt").read_text() == "new"


def test_a_folders_lock_removes_no_file_of_others(tmp_path):
    for name in (".mine.part", ".notes.txt.part", ".a.pt.0f3a.part"):
        (tmp_path / name).write_text("")
    with artifact_lock(tmp_path / "injector.pt", tmp_path, folder=True):
        assert {path.name for path in tmp_path.glob(".*.part")} == {".mine.part", ".notes.txt.part"}


# --- the environment -------------------------------------------------------------------------------------------------

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def set_variables(monkeypatch):
    def change(variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(("variables", "expected"), [
    ({}, (0, 1)), ({"RANK": "3"}, (0, 1)), ({"WORLD_SIZE": "2"}, (0, 1)), ({"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
    ({"WORLD_SIZE": "auto"}, (0, 1)), ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
    ({"RANK": "1", "WORLD_SIZE": "2", **PLACE}, (1, 2)), ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ({"RANK": "0", "WORLD_SIZE": "auto", **PLACE}, "WORLD_SIZE='auto'"),
    ({"RANK": "2", "WORLD_SIZE": "2", **PLACE}, "RANK='2'"),
    ({"RANK": "-1", "WORLD_SIZE": "2", **PLACE}, "RANK='-1'"),
    ({"RANK": "0", "WORLD_SIZE": "2", **PLACE, "MASTER_PORT": "x"}, "MASTER_PORT")])
def test_variables_of_torchrun_are_taken_together(set_variables, variables, expected, capsys):
    set_variables(variables)
    if isinstance(expected, tuple):
        assert processes() == expected
    else:
        with pytest.raises(UsageError, match=expected):
            processes()
    say("heard")
    assert (capsys.readouterr().out == "heard\n") is (variables.get("RANK") != "1")


def test_a_stray_rank_is_ignored_aloud(set_variables, scripts, tmp_path, capsys):
    set_variables({"RANK": "3", "LOCAL_RANK": "7"})
    assert stray_variables() == ["RANK=3"]
    with pytest.raises(GnimeError, match="no such folder"):  # after the warning
        pipeline.train(resolve("train", ["--gpu", "-1", "--root", str(tmp_path / "none")]))
    assert "warning: RANK=3 in the environment is ignored" in capsys.readouterr().err
    set_variables({"RANK": "0", "WORLD_SIZE": "2"})
    code, line = scripts.fails("train", tmp_path)
    assert code == 2 and "unset RANK and WORLD_SIZE" in line


def test_a_process_whose_peers_do_not_come_gives_up_and_says_so(set_variables, monkeypatch, capsys):
    monkeypatch.setattr(device, "START", timedelta(seconds=1))
    monkeypatch.setattr(device, "NOTICE", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    set_variables({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    with pytest.raises(GnimeError, match=f"process 0 of 2 does not reach the others at 127.0.0.1:{port}"):
        Device(resolve("train", ["--gpu", "-1"]))
    assert f"process 0 of 2 waits for the others at 127.0.0.1:{port}" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(GnimeError, match="with a free MASTER_PORT"):
            Device(resolve("train", ["--gpu", "-1"]))


def test_an_ignored_sigint_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupt.asked and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_processes_of_one_run_do_not_announce_each_others_moments(tmp_path, capsys):
    """A lock that is held for a moment is waited for in silence."""
    with (tmp_path / ".a.pt.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.1, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with artifact_lock(tmp_path / "a.pt", tmp_path):
            assert capsys.readouterr().out == ""


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_reader_that_has_gone_ends_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", pipe)
        for _ in range(2):
            say("nobody hears this")
            warn("nor this")
    closed = io.StringIO()
    closed.close()
    tell("x", closed)
    tell("x", None)


def test_what_is_printed_has_no_control_characters(capsys):
    say("a\x1b[31mb", "two\nlines ß")
    warn("\rover")
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31mb\ntwo\nlines ß\n" and err == "warning: \\rover\n"


CLOSED = """
import os, sys
from gnime.cli import main
try: main("prepare", ["--nope"])
except SystemExit as stopped: code = stopped.code
with open(sys.argv[1], "w") as file: file.write(f"{code} {file.fileno()}")
"""


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    command = f'{sys.executable} -c "$0" {tmp_path}/told <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command, CLOSED], cwd=REPOSITORY, check=False).returncode == 0
    code, number = (tmp_path / "told").read_text().split()
    assert code == "2" and int(number) > 2


# --- pictures --------------------------------------------------------------------------------------------------------


def test_the_users_matplotlib_does_not_reach_pictures(tmp_path):
    history = [[0.1, 0.2, 0.3], [0.05, 0.1, 0.2]]
    figures.injector_losses(tmp_path / "plain.png", history, 5.0)
    theirs = {"text.usetex": True, "savefig.facecolor": "black", "figure.constrained_layout.use": True, "lines.linewidth": 9}
    with matplotlib.rc_context(theirs):
        figures.injector_losses(tmp_path / "other.png", history, 5.0)
        assert matplotlib.rcParams["text.usetex"], "and it is left as it was"
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "other"))
    assert np.array_equal(one, other) and one.std() > 10


def test_a_picture_that_fails_is_a_warning(tmp_path, capsys):
    def fails(path):
        raise RuntimeError("latex was not found\n" * 50)

    pipeline.draw(fails, tmp_path / "a.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/a.png: not drawn (RuntimeError: latex was") and len(line) < 300
    (tmp_path / "a.png").mkdir()
    pipeline.draw(figures.injector_losses, tmp_path / "a.png", [[1, 1, 1]], 1.0)
    assert "a.png: cannot be written (Is a directory)" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        pipeline.draw(lambda path: signal.default_int_handler(2, None), tmp_path)


# --- flags, registries, results --------------------------------------------------------------------------------------


def test_one_registration_is_enough_for_a_colour_and_a_title(monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setitem(DEFENCES, name, Defence(name, name.title(), "somewhere:f"))
        monkeypatch.setitem(ROWS, name, Row(name, name))
    monkeypatch.setitem(ROWS, "withheld", Row("withheld", None))
    assert [colour(ROWS[name]) for name in ("one", "two", "withheld")] == list(COLOURS[:3])
    assert colour(Row("elsewhere", "one")) in COLOURS and title(ROWS["withheld"]) == "withheld" and title(ROWS["one"]) == "One"
    assert colour(ROWS["gnime"]) == DEFENCES["gnime"].colour and colour(ROWS["predmi"]) == ROWS["predmi"].colour


def test_lr_is_part_of_what_decides_a_network(scripts, root_copy):
    run = resolve("train", ["--lr", "0.01"])
    assert [run.train_config(kind).lr for kind in ("injector", "expmi", "classifier")] == [0.01, 0.001, 0.001]
    assert "--lr 0.01" in run.command("train") and "--lr" not in run.command("eval") and ", lr 0.01," in run.summary()
    code, line = scripts.fails("train", root_copy, "--lr", "0.01")
    assert code == 1 and "injector.pt: made with learning rate " in line and "give the same --batch-size and --lr" in line
    for wrong in ("0", "-1", "nan", "2", "x"):
        assert scripts.fails("train", root_copy, f"--lr={wrong}")[0] == 2


def test_a_width_too_narrow_to_learn_with_is_told(scripts, tmp_path, capsys):
    for flags, width in (([], 128), (["--target", "mnist"], 256), (["--target", "celeba", "--width", "128"], 1024)):
        assert resolve("train", flags).sensible_width == width
    with contextlib.suppress(GnimeError):
        pipeline.train(resolve("train", ["--target", "x", "--image-size", "64", "--width", "64", "--gpu", "-1",
                                         "--root", str(tmp_path / "none")]))
    warned = capsys.readouterr().err
    assert "warning: --width 64: " in warned and "the smallest sensible width for side 64 is 512" in warned


def test_results_hold_no_absolute_paths(small_root):
    text = (small_root / "figures/digits_lrp/results.json").read_text()
    assert str(small_root.parent) not in text and f"--root /path/to/{small_root.name} " in json.loads(text)["command"]


def test_a_found_victim_of_other_training_is_told():
    config = TrainConfig(epochs=10, batch_size=32, lr=0.001)
    found = {"epochs": 10, "early": False, "stage": config.identity()}
    assert trained_less(found, config) == trained_less({}, config) == trained_less(found | {"epochs": 12}, config) == ""
    assert trained_less(found | {"epochs": 4, "early": True}, config) == ""
    assert trained_less(found | {"epochs": 4}, config) == "trained for 4 epochs, this run asks for 10"
    assert "0.001" in trained_less(found, replace(config, lr=0.1)) and "0.1" in trained_less(found, replace(config, lr=0.1))
