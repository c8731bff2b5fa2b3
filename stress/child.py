"""One attempt in a process of its own, forked after the imports: killed, crashed or failed, it takes nothing with it."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class End:
    """How an attempt ended: exit code (None: killed by `signal`), what it printed, seconds."""

    code: int | None
    signal: int | None
    printed: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Exit code 1 or 2 with one error line and no traceback."""
        errors = [line for line in self.printed.splitlines() if "error:" in line]
        return self.code in (1, 2) and len(errors) == 1 and "Traceback" not in self.printed


def attempt(work: Callable[[], int], kill_after: float | None = None, limit: float = 120.0) -> End:
    """Runs `work` in a forked child; `kill_after` seconds it is killed where it stands."""
    read, write = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        for number in (1, 2):
            os.dup2(write, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = 70
        try:
            code = work()
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)
    os.close(write)
    printed, status = b"", None
    os.set_blocking(read, False)
    deadline = began + (limit if kill_after is None else kill_after)
    while status is None:
        done, state = os.waitpid(child, os.WNOHANG)
        try:
            printed += os.read(read, 1 << 20)
        except BlockingIOError:
            pass
        if done:
            status = state
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            time.sleep(0.002)
    while more := _rest(read):
        printed += more
    os.close(read)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return End(None if killed else os.WEXITSTATUS(status), killed, printed.decode(errors="replace"), time.monotonic() - began)


def _rest(read: int) -> bytes:
    try:
        return os.read(read, 1 << 20)
    except BlockingIOError:
        return b""


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A damaged copy and what was done: cut short, bits flipped, a block zeroed or swapped, bytes added or removed."""
    kind = rng.choice(["truncate", "flip one", "flip many", "zero", "swap", "insert", "remove"])
    at = rng.randrange(len(data))
    damaged = bytearray(data)
    size = rng.choice([1, 16, 512])
    if kind == "truncate":
        damaged = damaged[:at]
    elif kind.startswith("flip"):
        for _ in range(1 if kind == "flip one" else rng.randint(2, 16)):
            where = rng.randrange(len(data))
            damaged[where] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        damaged[at : at + size] = bytes(len(damaged[at : at + size]))
    elif kind == "swap":
        other = rng.randrange(len(data))
        a, b = damaged[at : at + size], damaged[other : other + size]
        size = min(len(a), len(b))
        damaged[at : at + size], damaged[other : other + size] = b[:size], a[:size]
    elif kind == "insert":
        damaged[at:at] = rng.randbytes(size)
    else:
        del damaged[at : at + size]
    return f"{kind} at {at}", bytes(damaged)


def write_over(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
