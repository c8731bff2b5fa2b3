"""The tables of docs/performance.md are those of benchmarks/results/."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def table():
    spec = importlib.util.spec_from_file_location("benchmarks_table", BENCHMARKS / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_performance_md_has_the_figures_of_the_files(table):
    assert table.DOCUMENT.read_text(encoding="utf-8") == table.document(), "run: python benchmarks/table.py"


def test_a_claim_says_its_direction_and_whether_it_holds(table):
    made = [{"claim": "a, b / ours", "measured": 2.793, "target": 3.0, "at_most": False, "ok": False},
            {"claim": "growth, MB", "measured": 0.664, "target": 4.0, "at_most": True, "ok": True}]
    assert list(table.claims({"step": {"claims": made}}))[2:] == [
        "| a, b / ours | 2.79 | at least 3 | short |", "| growth, MB | 0.66 | at most 4 | ok |"]


def test_medians_are_of_the_fastest_of_a_librarys_batches_and_bf16_may_be_missing(table):
    def times(*medians):
        return [{"median": median} for median in medians]

    plain, ours, captum32, captum128, zennit, explained = times(2.0, 0.7, 0.75, 0.9, 1.4, 0.25)
    steps = {f"{name} step fp32: {side}": value for name in table.STEPS for side, value in (("plain", plain), ("ours", ours))}
    explanations = {f"{name}: ours": explained for name in table.OTHERS} | {
        "grad: captum, batch 32": captum32, "grad: captum, batch 128": captum128, "gradcam: captum, batch 32": captum32,
        "lrp: zennit, batch 32": zennit}
    lines = list(table.medians(steps, explanations))
    assert lines[2] == "| injector step, batch 128, mnist, width 2048 | 2.00 | 0.70 | - |"
    assert lines[5:] == [f"| {name}, 256 images, against {library} | {theirs} | 0.25 | - |" for name, library, theirs in (
        ("grad", "captum", "0.75"), ("gradcam", "captum", "0.75"), ("lrp", "zennit", "1.40"))]
