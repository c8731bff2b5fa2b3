from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--vectors", default=str(HERE / "vectors"), help="folder of reference vectors (*.npz)")


def pytest_generate_tests(metafunc):
    """A test with an argument `<kind>_file` runs once for each file `<kind>_*.npz` of --vectors."""
    for kind in ("explainers", "gnime", "metrics"):
        if f"{kind}_file" in metafunc.fixturenames:
            files = sorted(Path(metafunc.config.getoption("--vectors")).glob(f"{kind}_*.npz"))
            empty = [pytest.param(None, marks=pytest.mark.skip(reason=f"no {kind}_*.npz in --vectors"))]
            metafunc.parametrize(f"{kind}_file", files or empty, ids=lambda f: f.stem if f else "none")


@pytest.fixture(autouse=True)
def _threads_and_seed():
    torch.manual_seed(0)
