"""Attackers side by side: the same numbers, one fault line, and stops that lose nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import Scripts
from works import could_use_cuda, fail, find, hears_ctrl_c, note, until_interrupted, warn_of

from gnime import pipeline, system
from gnime.cli import resolve
from gnime.errors import GnimeError, Stopped, UsageError
from gnime.parallel import run_side_by_side
from gnime.streams import one_command
from gnime.system import warn

REPOSITORY = Path(__file__).parent.parent


def moments(folder, name):
    return [float((folder / f"{name}.{what}").read_text()) for what in ("begun", "ended")]


def test_works_overlap_and_no_more_than_jobs_at_once(tmp_path):
    run_side_by_side([partial(note, tmp_path, name, 1.0) for name in "abc"], jobs=2)
    (a, a_ended), (b, b_ended), (c, _) = (moments(tmp_path, name) for name in "abc")
    assert max(a, b) < min(a_ended, b_ended) <= c


def test_the_first_fault_is_raised_and_the_others_save(tmp_path):
    works = [partial(until_interrupted, tmp_path, "a"), partial(fail, UsageError("--gpu 7: no such device")),
             partial(note, tmp_path, "never")]
    with pytest.raises(UsageError, match="--gpu 7: no such device"):
        run_side_by_side(works, jobs=2)
    assert not (tmp_path / "a.begun").exists() or (tmp_path / "a.saved").exists()
    assert not (tmp_path / "never.begun").exists()


def test_what_a_process_is_forked_from_has_asked_for_no_device():
    run_side_by_side([could_use_cuda], jobs=1)


def test_a_warning_of_several_processes_is_given_once_a_command(capsys):
    with one_command():
        warn("small")
        run_side_by_side([partial(warn_of, "small", "dim"), partial(warn_of, "dim", "small")], jobs=2)
        warn("dim")
    assert capsys.readouterr().err.splitlines() == ["warning: small", "warning: dim"]
    with one_command():
        warn("small")
    assert capsys.readouterr().err.splitlines() == ["warning: small"], "another command gives it again"
    warn("small")
    warn("small")
    assert capsys.readouterr().err.splitlines() == ["warning: small"] * 2, "outside of a command nothing is left out"


def test_what_several_processes_find_is_said_once_a_command(capsys):
    with one_command():
        find("images", "victim")
        run_side_by_side([partial(find, "victim", "maps"), partial(find, "maps", "images", "attacker")], jobs=1)
        find("attacker")
    assert capsys.readouterr().out.splitlines() == ["images", "victim", "maps", "attacker"]
    with one_command():
        run_side_by_side([partial(find, "victim")], jobs=1)
    assert capsys.readouterr().out.splitlines() == ["victim"], "another command says it again"


def test_a_process_that_dies_is_a_fault(tmp_path):
    with pytest.raises(GnimeError, match="ended with code 7"):
        run_side_by_side([partial(os._exit, 7), partial(note, tmp_path, "a")], jobs=1)


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM", "limit"])
def test_signals_and_the_time_limit_reach_every_process(tmp_path, monkeypatch, by):
    works = [partial(until_interrupted, tmp_path, name) for name in "ab"]
    if by == "limit":
        monkeypatch.setattr(system, "_deadline", time.monotonic() + 3)
    else:
        code = ("import os, signal, sys, time; from pathlib import Path; a = Path(sys.argv[2]) / 'a.begun'\n"
                "while not (a.exists() and (a.parent / 'b.begun').exists()): time.sleep(0.05)\n"
                f"os.kill(int(sys.argv[1]), signal.{by})")
        subprocess.Popen([sys.executable, "-c", code, str(os.getpid()), str(tmp_path)])
    before = [signal.getsignal(number) for number in system.Interrupt.AGAIN]
    with pytest.raises(Stopped):
        run_side_by_side(works, jobs=2)
    begun, saved = ({path.stem for path in tmp_path.glob(f"*.{what}")} for what in ("begun", "saved"))
    whole = by == "limit" or begun == {"a", "b"}
    assert begun == saved and whole, "on a busy machine the limit may be over before a process begins"
    assert [signal.getsignal(number) for number in system.Interrupt.AGAIN] == before


INTERRUPTED = """
import os, signal, sys
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
sys.path.insert(0, {tests!r})
from works import note
from gnime.cli import guarded
from gnime.parallel import run_side_by_side

def start(self, usual=BaseProcess.start):
    BaseProcess.start = usual
    if {when!r} == "before":
        os.killpg(0, signal.SIGINT)
    usual(self)
    if {when!r} == "after":
        os.killpg(0, signal.SIGINT)

BaseProcess.start = start
works = [partial(note, Path(sys.argv[1]), name, 5.0) for name in "abc"]
sys.exit(guarded("test", lambda: run_side_by_side(works, jobs=2)))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_counts_while_processes_start(tmp_path, when):
    """In a terminal, which sends it to all of them: to what imports PyTorch for the first process, or to that process."""
    code = INTERRUPTED.format(tests=str(Path(__file__).parent), when=when)
    run = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, start_new_session=True, capture_output=True,
                         text=True)
    assert run.returncode == 130 and not list(tmp_path.glob("*.ended"))
    assert len(run.stderr.splitlines()) == 2, f"a warning and a line at the end, no traceback: {run.stderr}"


RUNNING = """
import multiprocessing, os, signal, sys, threading, time
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
from works import until_interrupted
from gnime.cli import guarded
from gnime.parallel import run_side_by_side

folder = Path(sys.argv[1])

def send():
    while not all((folder / (name + ".begun")).exists() for name in "ab"):
        time.sleep(0.05)
    if {to!r} == "all":
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGTERM)
    if {to!r} != "none":
        os.killpg(0, signal.SIGTERM)

threading.Thread(target=send, daemon=True).start()
works = [partial(until_interrupted, folder, name) for name in "ab"]
sys.exit(guarded("test", lambda: run_side_by_side(works, jobs=2)))
"""


def running(folder, to):
    code = RUNNING.format(tests=str(Path(__file__).parent), to=to)
    return subprocess.Popen([sys.executable, "-c", code, folder], cwd=REPOSITORY, start_new_session=True, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("to", ["group", "all"])
def test_sigterm_to_several_processes_stops_each_once(tmp_path, to):
    """As `timeout`, batch systems and containers send it: to the group, or to all processes."""
    with running(tmp_path, to) as run:
        try:
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130 and len(said.splitlines()) == 2, said
    assert {path.name for path in tmp_path.glob("*.saved")} == {"a.saved", "b.saved"}


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_killed_it_leaves_no_processes(tmp_path):
    with running(tmp_path, "none") as run:
        while len(begun := [path for path in tmp_path.glob("*.begun") if path.read_text()]) < 2:
            time.sleep(0.05)
        run.kill()
    until = time.monotonic() + 30
    while not all(ended(path.read_text()) for path in begun) and time.monotonic() < until:
        time.sleep(0.1)
    assert all(ended(path.read_text()) for path in begun)


def test_no_process_is_left_deaf_to_ctrl_c():
    run_side_by_side([hears_ctrl_c], jobs=1)
    hears_ctrl_c()


def results(root):
    return json.loads((root / "figures/digits_lrp/results.json").read_text())["settings"]


@pytest.mark.usefixtures("no_pictures")
def test_jobs_give_the_numbers_of_one(scripts, small_root, root_copy):
    shutil.rmtree(root_copy / "models/inv")
    assert scripts("eval", root_copy, "--jobs", 3)[0] == 0
    assert results(root_copy) == results(small_root)
    assert "goes on" not in scripts("eval", root_copy)[1], "everything is found"


def test_a_process_trains_what_its_defence_needs(root_copy):
    """OND's inverter is trained while the row is protected, where no gradients are computed."""
    shutil.rmtree(root_copy / "models/inv")
    flags = [*map(str, Scripts.flags), "--root", str(root_copy), "--epochs", "1", "--settings", "ond"]
    pipeline.train_row(resolve("eval", flags), "ond")
    assert {path.name for path in (root_copy / "models/inv").glob("*lrp.pt")} == {
        "digits_ond_lrp.pt", "digits_ond-defender_lrp.pt"}


@pytest.mark.usefixtures("no_pictures")
def test_killed_with_its_processes_it_goes_on(scripts, small_root, root_copy):
    """The parent is killed and its processes end; then the same command ends with the numbers of an undisturbed run.

    It is given in a folder with a file that is not PyTorch.
    """
    (root_copy / "torch.py").write_text("raise SystemExit")
    command = [sys.executable, REPOSITORY / "eval.py", *Scripts.flags, "--jobs", "2", "--root", "."]
    shutil.rmtree(root_copy / "models/inv")
    with subprocess.Popen(command, cwd=root_copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and not list((root_copy / "models/inv").glob("*.pt")):
            time.sleep(0.05)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert scripts("eval", root_copy, "--jobs", 2)[0] == 0
    assert results(root_copy) == results(small_root)
