"""The kernels of one training step, by their time on the device."""

import env
import steps
import torch
from torch.profiler import ProfilerActivity, profile


def measure(kind: str, precision: str, rounds: int = 3) -> list[tuple[float, int, str]]:
    """Milliseconds a step, calls a step and name of the ten longest. The full table is appended to WORK/profile.txt."""
    device, target = env.open_device(precision), env.targets()[0]
    shape = steps.sides(target)[""]
    nets = steps.networks(kind, target, shape, device.torch)
    values = steps.batch(target, shape, 4 if env.TINY else steps.BATCH[kind], device.torch)

    def work() -> None:
        for _ in range(rounds):
            steps.step(nets, values, device.autocast())
        if env.on_gpu():
            torch.cuda.synchronize()

    work()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if env.on_gpu() else [])]
    with profile(activities=activities) as made:
        work()
    rows, spent = made.key_averages(), "self_device_time_total" if env.on_gpu() else "self_cpu_time_total"
    with (env.WORK / "profile.txt").open("a") as file:
        table = rows.table(sort_by=spent, row_limit=30, max_name_column_width=90)
        file.write(f"\n==== {kind} {precision}, {rounds} steps\n{table}\n")
    longest = sorted(rows, key=lambda row: getattr(row, spent), reverse=True)[:10]
    return [(round(getattr(row, spent) / 1e3 / rounds, 3), row.count // rounds, row.key[:90]) for row in longest]
