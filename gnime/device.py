"""The device that a run computes on, its precision, and the processes that share the work."""

import contextlib
import copy
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from .config import Run
from .errors import GnimeError, UsageError
from .system import release_freed_memory, retain_freed_memory, say

PATIENCE = timedelta(days=7)  # one process may train an attacker, or wait for another run's artifact, while others wait for it


def default_precision(gpu: int) -> str:
    """Of a run on `--gpu`, where no flag sets it."""
    return "tf32" if gpu >= 0 and torch.cuda.is_available() else "fp32"


class Device:
    """The torch device of a run, and its precision.

    Making one sets PyTorch's precision, its choice of kernels and the allocator for the whole process: PyTorch keeps them
    globally.

    Attributes:
        torch: the torch.device.
        precision: "fp32", "tf32" (CUDA only: matrix products of 32-bit numbers on tensor cores) or "bf16" (autocast).
        rank, world: this process among those that torchrun started; 0 of 1 otherwise.
    """

    def __init__(self, run: Run):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.torch = self._choose(run.gpu)
        cuda = self.torch.type == "cuda"
        self.precision = run.precision or default_precision(run.gpu)
        if self.precision == "tf32" and not cuda:
            raise UsageError("--precision tf32: only CUDA devices have it; use fp32 or bf16")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cudnn.benchmark = cuda and not run.deterministic
        if run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if not cuda:
            retain_freed_memory()
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

    def for_one_process(self) -> "Device":
        """This device for work that a process does without the others."""
        device = copy.copy(self)
        device.rank, device.world = 0, 1
        return device

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def describe(self) -> str:
        cuda = self.torch.type == "cuda"
        name = torch.cuda.get_device_name(self.torch) if cuda else f"CPU, {torch.get_num_threads()} threads"
        return f"{name}, {self.precision}" + (f", {self.world} processes" if self.world > 1 else "")


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """32-bit arithmetic in any precision of the run: explanations and metrics are what is compared."""
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
