"""The threads that a run starts, and the environment that it leaves to OpenMP."""

import os
import subprocess
import sys

import pytest

from gnime import cli, reproduce, threads


@pytest.mark.parametrize(("given", "spins"), [
    ({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None),
    ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "9"}, "9")])
def test_the_users_own_settings_are_kept(monkeypatch, given, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    threads.configure_threads()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ["OMP_NUM_THREADS"] == str(threads.processors())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.configure_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("files", "most"), [
    ({}, 64), ({"cpu.max": "max 100000\n"}, 64), ({"cpu.max": "150000 100000\n"}, 2), ({"cpu.max": "50000 100000\n"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3), ({"cpu.max": "nonsense"}, 64)])
def test_processors_are_those_of_affinity_and_control_group(monkeypatch, tmp_path, files, most):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.processors(tmp_path) == most
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert threads.processors(tmp_path) == 1


def test_entry_points_decide_before_torch_is_imported():
    """All of them call `guarded`, and import no torch before; see test_structure."""
    assert reproduce.guarded is cli.guarded
    code = ("import os, sys, gnime.cli, gnime.reproduce\ndef work():\n assert 'torch' not in sys.modules\n import torch\n"
            " print(os.environ['GOMP_SPINCOUNT'], torch.get_num_threads())\ngnime.cli.guarded('x', work)")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["2000", str(threads.processors())]
