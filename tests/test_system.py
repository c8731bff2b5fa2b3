"""The commit that results record."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gnime import system

REPOSITORY = Path(__file__).parent.parent


def git(*arguments):
    run = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a git checkout")
    return run.stdout.strip()


def test_an_archive_without_git_knows_its_commit(tmp_path):
    head = git("rev-parse", "HEAD")
    git("archive", "HEAD", "gnime", "-o", str(tmp_path / "gnime.tar"))
    with tarfile.open(tmp_path / "gnime.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    code = ("import sys; from unittest.mock import MagicMock\n"
            "sys.modules['torch'] = MagicMock()  # it is slow to import, and nobody asks it\n"
            "from gnime.system import commit; print(commit())")
    tell = [sys.executable, "-c", code]
    assert subprocess.run(tell, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == head[:12]
    (tmp_path / "gnime/_commit.py").write_text((REPOSITORY / "gnime/_commit.py").read_text())  # a plain copy
    assert subprocess.run(tell, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == "None"


def test_a_long_work_says_once_how_long_it_takes(monkeypatch, capsys):
    """The first step is warming up. 12 s for 3 of 1,000 steps: 996 are left, 66 minutes."""
    now = [100.0]
    monkeypatch.setattr(system.time, "monotonic", lambda: now[0])

    def lines(seconds, steps, at_once=1):
        forecast = system.Forecast("victim", steps, "for 100 epochs")
        for taken in seconds:
            now[0] += taken
            forecast.step(at_once)
        return capsys.readouterr().out.splitlines()

    assert lines([50, 4, 4, 4, 4], 1000) == ["victim        about 66 minutes for 100 epochs"]
    assert lines([50, 4, 4], 1000) == [], "too early to say"
    assert lines([50, 4, 4, 4, 4], 30) == [], "104 s are not long"
    assert lines([1, 15], 64 * 1000, at_once=64) == ["victim        about 4 hours for 100 epochs"], "998 times 15 s"
    assert [system.in_words(s) for s in (120, 7199, 7200, 172_799, 172_800)] == [
        "about 2 minutes", "about 120 minutes", "about 2 hours", "about 48 hours", "about 2 days"]
