"""The device of a run, its precision, and the processes of a distributed run."""

import contextlib
import copy
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from .config import Run
from .errors import GnimeError, UsageError, printable
from .streams import tell
from .system import processes, release_freed_memory, retain_freed_memory, say_once
from .words import counted

TIMEOUT = timedelta(days=7)  # of a barrier, at which processes may wait while another one trains an attacker
START = timedelta(minutes=5)  # in which all processes of a run must have started
NOTICE = 10.0  # seconds after which a process says that it waits for the others


def default_precision(gpu: int) -> str:
    """Of a run on `--gpu`, where no flag sets it."""
    return "tf32" if gpu >= 0 and torch.cuda.is_available() else "fp32"


class Device:
    """The torch device of a run, and its precision.

    The constructor sets PyTorch's precision and choice of kernels, and the memory allocator, for the whole process, because
    these settings are global.

    Attributes:
        torch: the torch.device.
        precision: "fp32", "tf32" (CUDA only: matrix products of 32-bit numbers on tensor cores) or "bf16" (autocast).
        rank, world: index of this process, and number of processes that torchrun started; 0 and 1 without torchrun.

    Raises:
        GnimeError: --gpu names a device that the machine does not have.
        UsageError: --precision tf32 on the CPU; or torchrun's variables in the environment make no sense.
    """

    def __init__(self, run: Run):
        self.rank, self.world = processes()
        self.torch = self._choose(run.gpu)
        cuda = self.torch.type == "cuda"
        self.precision = run.precision or default_precision(run.gpu)
        if self.precision == "tf32" and not cuda:
            raise UsageError("--precision tf32: only CUDA devices support it; use fp32 or bf16")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cudnn.benchmark = cuda and not run.deterministic
        if run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if not cuda:
            retain_freed_memory()
        if self.world > 1 and not dist.is_initialized():
            self._join("nccl" if cuda else "gloo")

    def _join(self, backend: str) -> None:
        """Meets the other processes of the run, which are to start within `START`. Later they may wait for `TIMEOUT`."""
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        line = f"process {self.rank} of {self.world} waits for the others at {place}"
        notice = threading.Timer(NOTICE, tell, (line, sys.stderr))
        notice.daemon = True
        notice.start()
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=START))
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=TIMEOUT)
            self.barrier()  # the backends connect in it
            store.set_timeout(TIMEOUT)
        except (RuntimeError, ValueError) as error:
            reason = printable(str(error).split("\n")[0], 150)
            raise GnimeError(f"process {self.rank} of {self.world} does not reach the others at {place} ({reason}); start all "
                             f"of them within {START.seconds // 60} minutes, and with a free MASTER_PORT") from None
        finally:
            notice.cancel()

    def _choose(self, gpu: int) -> torch.device:
        if gpu < 0:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            say_once(f"no CUDA device: --gpu {gpu} is ignored, the run uses the CPU")
            return torch.device("cpu")
        local = os.environ.get("LOCAL_RANK", "")
        if self.world > 1 and local.isdecimal():  # of torchrun
            gpu = int(local)
        if gpu >= torch.cuda.device_count():
            raise GnimeError(f"--gpu {gpu}: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0")
        torch.cuda.set_device(gpu)
        return torch.device("cuda", gpu)

    def autocast(self):
        """The context of forward passes in training: bfloat16 if the precision is "bf16"."""
        if self.precision == "bf16":  # a CUDA graph may not keep copies of weights that were made outside it
            return torch.autocast(self.torch.type, torch.bfloat16, cache_enabled=self.torch.type == "cpu")
        return contextlib.nullcontext()

    def for_one_process(self) -> "Device":
        """This device for work that the process does without the others: rank 0 of 1."""
        device = copy.copy(self)
        device.rank, device.world = 0, 1
        return device

    def barrier(self) -> None:
        """Waits until all processes of the run are here."""
        if self.world > 1:
            dist.barrier()

    def describe(self) -> str:
        """Name of the device and precision, for messages and results."""
        cuda = self.torch.type == "cuda"
        name = torch.cuda.get_device_name(self.torch) if cuda else f"CPU, {counted(torch.get_num_threads(), 'thread')}"
        return f"{name}, {self.precision}" + (f", {self.world} processes" if self.world > 1 else "")


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Computes in 32 bits whatever the precision of the run, so that runs of different precision can be compared.

    Explanations and metrics are computed so.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
        release_freed_memory()


def average_gradients(network: torch.nn.Module, world: int) -> None:
    """Replaces `.grad` by its sum over the processes. It is the mean, because each process scaled its loss by its share."""
    if world == 1:
        return
    for parameter in network.parameters():
        if parameter.grad is None:  # the batch had no row for this process
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in network.parameters()]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
