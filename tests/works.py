"""What tests run in processes of their own. Imports no more than that needs, because each process imports it."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import torch

from gnime.cli import main
from gnime.errors import GnimeError, Stopped
from gnime.store import artifact_lock
from gnime.system import Interrupt, say_once, warn


def note(folder, name, seconds=0.0):
    (folder / f"{name}.begun").write_text(str(time.monotonic()))
    time.sleep(seconds)
    (folder / f"{name}.ended").write_text(str(time.monotonic()))


def warn_of(*lines):
    for line in lines:
        warn(line)


def find(*lines):
    for line in lines:
        say_once(line)


def fail(error):
    raise error


def until_interrupted(folder, name):
    with Interrupt() as interrupt:
        (folder / f"{name}.begun").write_text(str(os.getpid()))
        while not interrupt.asked:
            time.sleep(0.05)
    (folder / f"{name}.saved").write_text("")
    raise Stopped("saved")


def hears_ctrl_c():
    if {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        raise GnimeError("SIGINT or SIGTERM is blocked")


def could_use_cuda():
    """PyTorch refuses CUDA after a fork from a process that has asked for it, if only whether it is there."""
    if torch.cuda._is_in_bad_fork():
        raise GnimeError("forked from a process that has asked for CUDA")


def hold_lock(path, seconds, pipe):
    with artifact_lock(path, path.parent):
        pipe.send("held")
        time.sleep(seconds)


def run_scripts(lines, said=os.devnull):
    """Runs scripts, pairs of a name and its flags, which must succeed. What they print goes to the file `said`."""
    with Path(said).open("w") as file, contextlib.redirect_stdout(file):
        for script, flags in lines:
            assert main(script, flags) == 0, script


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def as_rank(rank, port, work):
    """`work` as one of two processes that torchrun starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                   "MASTER_PORT": str(port)}
    work()
