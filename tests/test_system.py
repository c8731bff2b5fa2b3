"""The commit that results record."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

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
    tell = [sys.executable, "-c", "from gnime.system import commit; print(commit())"]
    assert subprocess.run(tell, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == head[:12]
    (tmp_path / "gnime/_commit.py").write_text((REPOSITORY / "gnime/_commit.py").read_text())  # a plain copy
    assert subprocess.run(tell, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == "None"
