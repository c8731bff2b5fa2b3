"""Seeds, the device and its precision, several processes, and the record of what made a result."""

import contextlib
import copy
import ctypes
import hashlib
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from .config import Run
from .errors import GnimeError, UsageError

PATIENCE = timedelta(days=7)  # one process may train an attacker, or wait for another run's artifact, while others wait for it


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose. Every random number of a run comes from one of these, so that nothing that
    advances needs saving: epoch 7's order is the same whether epochs 0 to 6 ran in this process or in another."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, *purpose))


def permutation(n: int, seed: int, *purpose: object) -> torch.Tensor:
    return torch.randperm(n, generator=generator(seed, *purpose))


class Device:
    """Where a run computes, and how precisely.

    Attributes:
        torch: the torch.device.
        precision: "fp32", "tf32" (CUDA only: matrix products of 32-bit numbers on tensor cores) or "bf16" (autocast).
        rank, world: this process among those that torchrun started; 0 of 1 otherwise.
    """

    def __init__(self, run: Run):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.torch = self._choose(run.gpu)
        cuda = self.torch.type == "cuda"
        self.precision = run.precision or ("tf32" if cuda else "fp32")
        if self.precision == "tf32" and not cuda:
            raise UsageError("--precision tf32: only CUDA devices have it; use fp32 or bf16")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cudnn.benchmark = cuda and not run.deterministic
        if run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if not cuda:
            keep_freed_memory()
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)

    def _choose(self, gpu: int) -> torch.device:
        if gpu < 0:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            say(f"no CUDA device here: --gpu {gpu} is not used, the CPU runs")
            return torch.device("cpu")
        gpu = int(os.environ.get("LOCAL_RANK", gpu))
        if gpu >= torch.cuda.device_count():
            raise GnimeError(f"--gpu {gpu}: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0")
        torch.cuda.set_device(gpu)
        return torch.device("cuda", gpu)

    def autocast(self):
        if self.precision == "bf16":
            return torch.autocast(self.torch.type, torch.bfloat16)
        return contextlib.nullcontext()

    def solo(self) -> "Device":
        """This device for work that a process does by itself."""
        alone = copy.copy(self)
        alone.rank, alone.world = 0, 1
        return alone

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def describe(self) -> str:
        cuda = self.torch.type == "cuda"
        name = torch.cuda.get_device_name(self.torch) if cuda else f"CPU, {torch.get_num_threads()} threads"
        return f"{name}, {self.precision}" + (f", {self.world} processes" if self.world > 1 else "")


def keep_freed_memory() -> None:
    """glibc hands large pieces back to the system when they are freed, and the next step faults every page in anew: a
    quarter of a classifier's step. From here on up to 2 GB stay with the process. Elsewhere nothing is changed."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        allocator = ctypes.CDLL(None).mallopt
        allocator(trim_threshold, 2**31 - 1)
        allocator(mmap_threshold, 2**30)


_handed_back = time.monotonic()


def hand_back_memory(every: float = 0.0) -> None:
    """What `keep_freed_memory` kept goes back to the system, if it has not within `every` seconds: between two pieces of
    work, the second of which would not fit into the gaps that the first left, and now and then in a long one, whose
    threads leave gaps for each other."""
    global _handed_back
    if time.monotonic() - _handed_back < every:
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    _handed_back = time.monotonic()


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """32-bit arithmetic whatever the run's precision: for explanations and metrics, which are what is compared."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
        hand_back_memory()  # such a piece of work is over


def average_gradients(network: torch.nn.Module, world: int) -> None:
    """Sums `.grad` over the processes; each has already scaled its losses by its share of the batch."""
    if world == 1:
        return
    for parameter in network.parameters():
        if parameter.grad is None:  # this process had none of the batch
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in network.parameters()]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def say(*lines: str) -> None:
    """Prints for the user, once however many processes run."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*lines, sep="\n", flush=True)


def warn(line: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def seconds_since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


_deadline = math.inf


def stop_after(seconds: float) -> None:
    """From so many seconds on, training stops as if Ctrl-C were pressed: saved, and resumable."""
    global _deadline
    _deadline = time.monotonic() + seconds


def time_is_up() -> bool:
    return time.monotonic() > _deadline


class Interrupt:
    """Turns Ctrl-C into a wish that training looks at where it can save; a second Ctrl-C stops at once."""

    @property
    def asked(self) -> bool:
        return self._pressed or time_is_up()

    def __enter__(self):
        self._pressed = False
        self._usable = threading.current_thread() is threading.main_thread()
        if self._usable:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number, frame):
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
        warn("stopping: the work is saved at the end of this epoch; press Ctrl-C again to stop at once")

    def __exit__(self, *error):
        if self._usable:
            signal.signal(signal.SIGINT, self._before)


@cache
def provenance(device: str) -> dict:
    """Versions, commit and hardware: with configuration and seed, what is needed to repeat a result."""
    from . import __version__

    versions = {"gnime": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "hickle", "h5py", "scikit-learn", "pytorch-msssim"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"versions": versions, "commit": commit(),
            "hardware": {"device": device, "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}}


@cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" where files differ from it."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        run = [subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True).stdout
               for args in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].strip() + ("+" if run[1].strip() else "")


def _cpu() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
