"""Several rows' attackers at once: a process for each row, which wait for each other's artifacts by their locks."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from signal import SIGINT

from .errors import GnimeError, Stopped, UsageError, fixable
from .system import Interrupt, relay, say_once, stop_after, time_left, warn

ONCE = {"warning": warn, "once": say_once}  # what a process passes on, so that it is printed once for all of them
STOPS = tuple(Interrupt.AGAIN)
Work = Callable[[], None]  # can be pickled: a module's function, or a `functools.partial` of one
DRIVERS = "/dev/nvidiactl", "/dev/dxg"  # where there is a CUDA device; what its driver holds does not survive a fork
# with PyTorch; optimisers import it when they are made. Python 3.10 would search the current folder first; see `_environment`
PRELOADED = ["torch._dynamo"] if hasattr(sys.flags, "safe_path") and not any(map(os.path.exists, DRIVERS)) else []


def fork_context() -> multiprocessing.context.ForkServerContext:
    """Processes that are forked from one that has imported PyTorch, so that they start in a moment.

    Beside a CUDA device that one has imported nothing, and each process imports PyTorch for itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_side_by_side(works: Sequence[Work], jobs: int) -> None:
    """Runs each of `works` in a process of its own, `jobs` at a time, in their order.

    Ctrl-C, SIGTERM and the time limit of this process hold for all: each saves its training. When one fails, the others save
    theirs.

    Raises:
        GnimeError: the first fault of a process. Stopped: Ctrl-C or SIGTERM, or the time is up.
    """
    context, waiting, running = fork_context(), list(works), {}
    fault: GnimeError | None = None
    with Interrupt() as interrupt, _environment(), _ended(running):
        while waiting or running:
            stopping = fault is not None or interrupt.asked
            while waiting and len(running) < jobs and not stopping:
                ours, theirs = context.Pipe()
                process = context.Process(target=_child, args=(theirs, waiting.pop(0), time_left()))
                _start_server()
                process.start()
                theirs.close()
                running[ours] = process
                stopping = interrupt.asked
            if stopping:
                waiting.clear()
                for pipe, process in running.items():
                    _interrupt_once(pipe, process)
            for pipe in wait(list(running), timeout=0.2):
                kind, text = _received(pipe)
                if kind in ONCE:
                    ONCE[kind](text)
                else:
                    found = _fault(kind, text, running.pop(pipe))
                    fault = fault or found
    if fault:
        raise fault
    if interrupt.asked:
        raise Stopped("stopped; the same command goes on from what is saved")


@contextlib.contextmanager
def _ended(running: dict[Connection, multiprocessing.Process]) -> Iterator[None]:
    """No process is left behind, however the block ends."""
    try:
        yield
    finally:
        for process in running.values():
            process.kill()  # SIGTERM would let it finish its epoch
            process.join()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Of the processes: no progress bars over each other, and no torch.py of the current folder in place of PyTorch.

    Their number of threads stays, because another one changes the last digits.
    """
    theirs = {"TQDM_DISABLE": "1", "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in theirs}
    os.environ.update(theirs)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start_server() -> None:
    """Starts what processes are forked from, if it does not run. Does not wait until it has imported PyTorch.

    It inherits that SIGINT and SIGTERM are blocked, and so does each process, until `_child` has handlers: what is sent to all
    of them ends none. In this process both hold from then on, also while it waits for the first process.
    """
    resource_tracker.ensure_running()  # unblocks them where it starts, so not below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt_once(pipe: Connection, process: multiprocessing.Process) -> None:
    """By a message too: a process that is still starting forgets the signal."""
    if not getattr(process, "interrupted", False) and process.is_alive():
        process.interrupted = True
        with contextlib.suppress(OSError):
            pipe.send("stop")
            os.kill(process.pid, SIGINT)


def _received(pipe: Connection) -> tuple[str, str]:
    """What a process sends: a line that is printed once, or how it ended."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return "died", ""


def _fault(kind: str, text: str, process: multiprocessing.Process) -> GnimeError | None:
    """The fault of a process that has ended so. One that was stopped has none of its own."""
    process.join()  # before that its exit code is not known
    if kind == "died":
        how = "was killed, perhaps for want of memory" if process.exitcode == -9 else f"ended with code {process.exitcode}"
        text = f"a process for an attacker {how}; the same command goes on from what is saved"
    return {"done": None, "stopped": None, "usage": UsageError(text)}.get(kind, GnimeError(text))


def _child(pipe: Connection, work: Work, seconds: float) -> None:
    """Leaves the terminal's process group, and ignores SIGTERM: a stop reaches this process once, by `_interrupt_once`."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stop_after(seconds)
    Interrupt.announces = False  # the parent does
    relay(partial(_pass_on, pipe))
    try:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)  # forgets one that was sent to all: it would be stopped twice
        signal.signal(SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if not pipe.poll():
            work()
        answer = "done", ""
    except (Stopped, KeyboardInterrupt):
        answer = "stopped", ""
    except UsageError as error:
        answer = "usage", str(error)
    except GnimeError as error:
        answer = "failed", str(error)
    except Exception as error:
        if (line := fixable(error)) is None:
            raise
        answer = "failed", line
    signal.signal(SIGINT, signal.SIG_IGN)  # nothing is left to be stopped
    with contextlib.suppress(OSError):  # the parent is gone
        pipe.send(answer)


def _pass_on(pipe: Connection, kind: str, line: str) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        pipe.send((kind, line))


def _end_with_parent() -> None:
    """The process that calls `run_side_by_side` may be killed. What this one was forked from goes on while one of them does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
