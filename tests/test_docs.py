"""docs/results.md and the charts, against numbers worked out by hand."""

import json
import statistics
from pathlib import Path

import pytest
from helpers import run_of, write
from matplotlib.colors import to_rgb
from PIL import Image

from gnime.registry import ROWS, colour
from gnime.report import docs, figures, paper
from gnime.report.defences import defence_tables, summary_table
from gnime.report.groups import RELEASE
from gnime.report.seeds import frontier
from gnime.report.spread import gather
from gnime.report.verdict import judge
from gnime.reproduce import main

REPOSITORY = Path(__file__).parent.parent

def test_written_and_checked(runner):
    write(runner, "reduced", run_of(expmi=0.01, gnime=0.03), run_of(1, expmi=0.02, gnime=0.04))
    assert runner("--check")[0] == 1
    code, out, _ = runner("--docs")
    assert code == 0 and "from 2 runs" in out
    chart = runner.folder / "docs/figures/bars_reduced.png"
    text = docs.DOCS.read_text()
    assert "(figures/bars_reduced.png)" in text and "bars_paper" not in text and not chart.with_name("bars_paper.png").exists()
    assert runner("--check") == (0, "", [])

    docs.DOCS.write_text(text.replace("0.0150", "0.0151"))
    code, out, _ = runner("--check")
    assert code == 1 and "docs/results.md differs" in out and "+| expmi | 0.0150 ± 0.0071" in out and "bars" not in out
    docs.DOCS.write_text(text)

    write(runner, "reduced", run_of(expmi=0.010000001, gnime=0.03))  # too little for the table, not for the chart
    code, out, _ = runner("--check")
    assert code == 1 and "bars_reduced.png is missing, or drawn from other results" in out and "differs" not in out
    write(runner, "reduced", run_of(expmi=0.01, gnime=0.03))
    assert runner("--check")[0] == 0

    Image.open(chart).convert("RGB").save(chart)  # the same picture without its note
    assert runner("--check")[0] == 1
    for left in (b"", b"\x89PNG\r\n\x1a\n", b"text"):
        chart.write_bytes(left)
        assert runner("--check")[0] == 1
    chart.unlink()
    assert runner("--check")[0] == 1
    assert runner("--docs")[0] == 0 and runner("--check")[0] == 0

    write(runner, "paper", run_of(expmi=0.005))
    code, out, _ = runner("--check")
    assert code == 1 and "docs/results.md differs" in out and "bars_paper.png is missing" in out
    assert runner("--docs")[0] == 0 and runner("--check")[0] == 0
    assert "(figures/bars_paper.png)" in docs.DOCS.read_text()


def test_what_is_committed_is_what_the_results_say(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(["--check"]) == 0, capsys.readouterr().out


def cells(lines, setting, *first):
    """The cells of the table row that starts so, without blanks."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    found = [row for row in rows if row[: len(first) + 1] == [*first, setting]]
    assert len(found) == 1, found
    return found[0][len(first) + 1 :]


def test_the_papers_table_by_hand(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # docs/table1.csv: mnist, grad, expmi: MSE 0.0051 ± 0.0003, SSIM 0.9065 ± 0.0133
    lines = paper.paper_tables([run_of(0, expmi=0.0052), run_of(1, expmi=0.0058)])
    lines = lines[: lines.index("### cifar10, default mode")]
    row = cells(lines, "expmi", "grad")  # 0.0055 ± 0.0006 / sqrt 2; (0.0055 - 0.0051) / 0.0003
    assert row[:3] == ["0.0051 ± 0.0003", "0.0055 ± 0.0004 (n=2)", "+1.3"]
    assert row[3:6] == ["0.9065 ± 0.0133", "0.9450 ± 0.0042 (n=2)", "+2.9"]  # 0.0385 / 0.0133
    assert cells(lines, "expmi", "lrp")[:3] == ["0.0012 ± 0.0001", "not measured", ""]
    assert [cells(lines, "predmi", xai)[0] for xai in ("grad", "gradcam", "lrp")] == ["0.0237 ± 0.0001"] * 3
    one = paper.paper_tables([run_of(0, predmi=0.0235, xai="lrp")])
    assert cells(one[: one.index("### cifar10, default mode")], "predmi", "lrp")[1:3] == ["0.0235 (n=1)", "-2.0"]


def test_every_commit_that_trained_a_network_is_named():
    one, two = run_of(0, expmi=0.03), run_of(1, expmi=0.04)
    one["networks"] = {"victim": {"commit": "def"}, "expmi": {"commit": "abc"}, "injector": {"digest": "somebody else's"}}
    two["networks"] = {"victim": {"commit": None}}
    assert "commit abc, def, None." in "\n".join(paper.reduced_tables([one, two]))


def test_reduced_tables_by_hand():
    runs = [run_of(10, expmi=0.03), run_of(2, expmi=0.01, gnime=0.04), run_of(3, expmi=0.02, gnime=0.06)]
    lines = paper.reduced_tables(runs)
    text = "\n".join(lines)
    assert "Seeds 2, 3, 10. 60 images of 1x32x32; attackers train on 22 and are tested on 6. Width 64, a = 100." in text
    rows = [line for line in lines if line.startswith("| expmi")]
    assert rows[0].startswith("| expmi | 0.0200 ± 0.0100 | 20.00 ± 0.00 | 0.8000 ± 0.1000 | 0.5000 ± 0.0000 | 0.9800 ± 0.0100")
    assert rows[1] == "| expmi | 0.0100 [0.0020, 0.0600] | [0.0190, 0.0230] |"
    assert cells([line for line in lines if "±" in line], "gnime (n=2)")[0] == "0.0500 ± 0.0141"
    runs[1]["configuration"] |= {"weight": None, "stages": runs[1]["configuration"]["stages"] | {"classifier": None}}
    text = "\n".join(paper.reduced_tables(runs))
    assert "a = not known. " in text and "classifier: not trained here" in text
    older = run_of(expmi=0.1)
    del older["settings"]["expmi"]["mse_quantiles"]
    assert "| expmi | - | - |" in paper.reduced_tables([older])


def test_default_mode_against_official_by_hand():
    runs = [run_of(0, expmi=0.02, gnime=0.1), run_of(1, expmi=0.04), run_of(2, expmi=0.5),
            run_of(0, official=RELEASE, expmi=0.03), run_of(1, official=RELEASE, expmi=0.05, gnime=0.1),
            run_of(0, xai="lrp", expmi=0.02), run_of(1, xai="lrp", official=RELEASE, expmi=0.02)]
    lines = paper.official_tables(runs)
    assert [line for line in lines if line.startswith("###")] == ["### mnist, Gradient: default mode against `--official`"]
    row = cells(lines, "expmi")  # +50 % and +25 %: 37.5 ± 25 / sqrt 2; seed 2 has no partner
    assert row == ["0.0300 ± 0.0141", "0.0400 ± 0.0141", "37.5 ± 17.7", "0.7000 ± 0.1414", "0.6000 ± 0.1414", "2"]
    assert not [line for line in lines if line.startswith("| gnime")], "no seed has it in both modes"
    assert paper.official_tables(runs[:3]) == []


@pytest.mark.parametrize(("name", "xai", "batches", "pooled"), [
    ("mnist", "grad", True, False), ("cifar10", "gradcam", True, True), ("orl_faces", "lrp", False, False),
    ("orl_faces", "gradcam", False, True)])
def test_choices_of_the_authors_that_can_have_acted(name, xai, batches, pooled):
    pair = [run_of(name=name, xai=xai, official=official, predmi=0.1) for official in ((), RELEASE)]
    text = "\n".join(paper.official_tables(pair))
    assert ("predmi and expmi also twice the batch" in text) is batches
    assert ("averaged over a batch" in text) is pooled
    assert "one fixed order" in text and "gnime also the standardised clean explanation" in text


def test_the_authors_choices_one_by_one_by_hand(runner):
    runs = [run_of(0, expmi=0.02, gnime=0.1), run_of(1, expmi=0.04), run_of(0, official=RELEASE, expmi=0.03),
            run_of(0, official=("scale",), gnime=0.05),
            run_of(0, official=("order",), expmi=0.03), run_of(1, official=("order",), expmi=0.05),
            run_of(2, official=("order",), expmi=0.9), run_of(0, official=("gradcam", "order"), expmi=0.01)]
    lines = paper.official_tables(runs)
    start = lines.index("### mnist, Gradient: the authors' choices one by one")
    table = [line for line in lines[start:] if line.startswith("|")]
    assert table == ["| choice | expmi | gnime |", "|---|---|---|", "| scale | not measured | -50.0 (n=1) |",
                     "| order | 37.5 ± 17.7 (n=2) | not measured |",  # +50 % and +25 %; no default for seed 2
                     "| gradcam order | -50.0 (n=1) | not measured |", "| all | 50.0 (n=1) | not measured |"]
    made = "a processor, CPU, commit abc"
    assert lines[-2] == f"Measured: single choices: {made}; default: {made}; all: {made}."
    assert not any("one by one" in line for line in paper.official_tables(runs[:3])), "no choice was repeated alone"
    assert "| order | not measured |" in paper.official_tables(runs[4:5]), "nothing to compare with"
    assert sum(line.startswith("###") for line in paper.reduced_tables(runs)) == 2, "full tables of the two modes alone"
    write(runner, "reduced", *runs)
    assert {*docs.charts(docs.read_results(Path("results")))[Path("docs/figures/bars_reduced.png")][0]} == {
        "mnist", "mnist, official"}


def test_single_choices_alone_make_no_chart(runner):
    write(runner, "paper", run_of(0, official=("order",), expmi=0.03))
    assert main(["--docs"]) == 0 and main(["--check"]) == 0
    text = Path("docs/results.md").read_text()
    assert "bars_paper" not in text and "| order | not measured |" in text and not list(Path("docs").rglob("*.png"))


@pytest.mark.parametrize("official", [True, "", {}, ["scale", "gradcam"], ["order", "order"], ["nothing"]])
def test_choices_of_the_authors_have_one_form(runner, official):
    run = run_of(expmi=0.1)
    write(runner, "reduced", run)
    path = Path("results/reduced/mnist_grad_seed0.json")
    path.write_text(json.dumps(run | {"configuration": run["configuration"] | {"official": official}}))
    assert main(["--docs"]) == 1


def test_observations_by_hand():
    one = run_of(0, predmi=0.1, expmi=0.02, rnd=0.03, gnime=0.05, rnd_0=0.02, rnd_4=0.04, negative=0.02, permutation=0.04,
                 class_mean=0.09, blank=0.1, warnings=["rnd: x", "negative: y"])
    two = run_of(1, predmi=0.1, expmi=0.02, rnd=0.05, gnime=0.05, rnd_0=0.022, rnd_4=0.04, negative=0.02, permutation=0.04,
                 class_mean=0.11, blank=0.1, warnings=["rnd: x", "rnd: z"])
    for run, leak in ((one, 1.0), (two, 1.02)):
        run["settings"]["negative"] |= {"residual_leakage": leak, "attackers": {"expmi": 0.03, "centred": 0.02}}
        run["settings"]["permutation"] |= {"residual_leakage": 0.75, "attackers": {"expmi": 0.08, "dense": 0.04}}
    three = run_of(2, **{name.replace("-", "_"): numbers["mse"] for name, numbers in one["settings"].items()})
    for control in ("negative", "permutation"):
        three["settings"][control] = one["settings"][control]
    assert paper._observations([one, two, three]) == [
        "- MSE expmi < rnd < gnime: 2 of 3 runs.",
        "- SSIM expmi > rnd > gnime: 2 of 3 runs.",
        "- TCA expmi > rnd > gnime: 2 of 3 runs.",
        "- Control no noise: MSE 1.033 ± 0.058 times expmi's (the same data: 1 but for first weights and order).",
        "- Control noise of 4 times the distortion, MSE rnd < rnd-4: 2 of 3 runs.",
        "- Control 1 - e: MSE 0.0300 ± 0.0000 for the paper's attacker, 0.0200 ± 0.0000 for one that subtracts the "
        "mean of what it sees; the one with the better validation error recovers 1.007 ± 0.012 of the leak.",
        "- Control pixel permutation: MSE 0.0800 ± 0.0000 for the paper's attacker, 0.0400 ± 0.0000 for one with a dense front "
        "end; the one with the better validation error recovers 0.750 ± 0.000 of the leak.",
        "- Control class mean: MSE 0.967 ± 0.115 times PredMI's, 0.967 ± 0.115 times the blank one's. Of the single image it "
        "says nothing, of the class what the defender's images tell.",
        "- Control blank explanation: MSE 1.000 ± 0.000 times PredMI's (the same to see: what differs is what the two networks "
        "make of it).",
        "- Runs with a warning: 2 of 3 (warnings: rnd 3, negative 1).",
    ]
    assert paper._observations([run_of(predmi=0.1)]) == ["- Runs with a warning: 0 of 1."]
    some = paper._observations([one, run_of(1, predmi=0.1, expmi=0.02, rnd=0.03, gnime=0.05)])
    assert some[0] == "- MSE expmi < rnd < gnime: 2 of 2 runs."
    assert "- Control noise of 4 times the distortion, MSE rnd < rnd-4: 1 of 1 runs." in some, "of those that have it"
    some = paper._observations([run_of(predmi=0.1, class_mean=0.09)])
    assert some[0].startswith("- Control class mean: MSE 0.900 times PredMI's. Of"), "without a blank one"


def test_charts_by_hand(runner, monkeypatch):
    """Heights, spreads and colours of what is drawn."""
    runs = [run_of(0, expmi=0.004, gnime=0.012), run_of(1, expmi=0.006), run_of(0, xai="lrp", official=RELEASE, expmi=0.003)]
    drawn = docs.charts({"paper": runs, "reduced": runs})
    ours = {"mnist": {"Gradient": {"expmi": [0.004, 0.006], "gnime": [0.012]}},
            "mnist, official": {"LRP (z+)": {"expmi": [0.003]}}}
    paper = {"mnist": {"Gradient": {"expmi": (0.0051, 0.0003), "gnime": (0.0143, 0.0003)}},
             "mnist, official": {"LRP (z+)": {"expmi": (0.0012, 0.0001)}}}
    path = Path("docs/figures/bars_paper.png")
    assert drawn[path] == (ours, paper)
    assert not any(any(groups.values()) for groups in drawn[path.with_name("bars_reduced.png")][1].values())
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: kept.append(figure))
    figures.seed_bars(path, *drawn[path])
    one, other = kept[0].axes
    assert (one.get_title(), other.get_title()) == ("mnist", "mnist, official")
    assert [label.get_text() for label in one.get_xticklabels()] == ["Gradient"]
    assert sorted(bar.get_height() for bar in one.patches) == pytest.approx([0.005, 0.0051, 0.012, 0.0143])
    spreads = sorted(line.get_segments()[0][1][1] - line.get_segments()[0][0][1] for line in one.collections)
    assert spreads == pytest.approx([0.0006, 0.0006, 2 * 0.002 / 2**0.5], abs=1e-9)
    shades = {bar.get_height(): bar.get_facecolor() for bar in one.patches}
    assert figures.matplotlib.colors.to_hex(shades[0.012]) == colour(ROWS["gnime"]) and shades[0.0143][3] < 0.5
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == ["expmi", "gnime", "paper"]


def test_panels_share_rows_of_three_groups():
    three, one = dict.fromkeys("abc"), dict.fromkeys("a")
    assert figures._rows({"m": one, "c": three, "o": one, "d": one, "x": one, "four": dict.fromkeys("abcd")}) == [
        ["m", "o", "d"], ["c"], ["x"], ["four"]]


def test_what_each_defence_leaves_and_keeps():
    """The rows of the committed runs on digits with LRP, by hand from the files."""
    runs = [json.loads(path.read_text()) for path in sorted((REPOSITORY / "results/reduced").glob("digits_lrp_seed?.json"))]
    text = "\n".join(defence_tables(runs))
    leaks, kept = ([100 * run["settings"]["gnime"]["residual_leakage"] for run in runs],
                   [run["settings"]["gnime"]["pearson"] for run in runs])
    (row,) = [line for line in text.splitlines() if line.startswith("| gnime |")]
    assert row.startswith(f"| gnime | {statistics.mean(leaks):.0f} ± {statistics.stdev(leaks):.0f} % | "
                          f"{statistics.mean(kept):.2f} ± {statistics.stdev(kept):.2f} | ")
    dominators = set.intersection(*(set(judge(run).dominated["gnime"]) for run in runs))
    assert set(row.split("|")[5].strip().split(", ")) == dominators != set()
    assert "Publish: cond-mean (mean explanation given the prediction). This is the verdict of all 3 seeds." in text
    warned = [run["seed"] for run in runs if any(line.startswith("cond-mean: ") for line in run["warnings"])]
    assert warned == [0, 1, 2] and "\nWarning: the maps of cond-mean (all 3 seeds) add nothing to the prediction" in text
    runs[1]["settings"]["cond-mean"]["residual_leakage_interval"] = [-0.1, 0.2]  # chance, whatever else is warned of
    assert "the maps of cond-mean (seeds 0, 2) add nothing" in "\n".join(defence_tables(runs))
    low, high = (round(100 * bound) for bound in runs[0]["settings"]["gnime"]["residual_leakage_interval"])
    assert f"| gnime | {leaks[0]:.0f} % [{low}, {high}] | " in "\n".join(defence_tables(runs[:1]))
    del runs[0]["settings"]["gnime"]
    assert "| gnime (n=2) | " in "\n".join(defence_tables(runs))
    older = [{name: value for name, value in run.items() if name != "verdict"} for run in runs]
    assert defence_tables(older) == []


def test_a_row_that_others_dominate_by_turns():
    """The prototypes of the committed runs on digits with Grad-CAM, by hand from the verdicts of their seeds."""
    files = sorted((REPOSITORY / "results/reduced").glob("digits_gradcam_seed?.json"))
    runs = [json.loads(path.read_text()) for path in files]
    better = [set(judge(run).dominated["prototypes-4"]) for run in runs]
    assert all(better) and not set.intersection(*better)
    (row,) = [line for line in defence_tables(runs) if line.startswith("| prototypes-4 |")]
    assert row.endswith("| another row in each of 3 seeds |")
    runs[0]["settings"]["prototypes-4"]["pearson_interval"] = [0.0, 1.0]
    runs[0]["settings"]["prototypes-4"]["residual_leakage_interval"] = [-1.0, 1.0]
    (row,) = [line for line in defence_tables(runs) if line.startswith("| prototypes-4 |")]
    assert row.endswith("| in 2 of 3 seeds |")


def test_readmes_table_by_hand(runner):
    """The rows of the committed runs on digits with LRP, by hand from the files."""
    runs = [json.loads(path.read_text()) for path in sorted((REPOSITORY / "results/reduced").glob("digits_lrp_seed?.json"))]
    del runs[0]["settings"]["prototypes-16"]
    for run in runs:
        del run["settings"]["rnd"]
    rows = [run["settings"]["gnime"] for run in runs]
    leaks, kept = [100 * row["residual_leakage"] for row in rows], [row["pearson"] for row in rows]
    heads, _, line = ([cell.strip() for cell in line.strip("|").split("|")] for line in summary_table(runs))
    found = dict(zip(heads, line, strict=True))
    assert found[""] == "digits, LRP (z+)" and found["seeds"] == "3" and found["`rnd`"] == "not measured"
    assert found["`gnime`"] == f"{statistics.mean(leaks):.0f} ± {statistics.stdev(leaks):.0f} %, {statistics.mean(kept):.2f}"
    assert found["`prototypes-16`"].endswith(" (n=2)")
    points, caption = frontier(gather(runs))
    assert "prototypes-16" not in [point.name for point in points] and "gnime" in [point.name for point in points]
    assert caption.headline == (
        "digits, lrp: mean and standard deviation over 3 seeds; not drawn, of fewer seeds: prototypes-16")

    write(runner, "reduced", *runs)
    docs.README.write_text(f"before\n{docs.MARKS[0]}\nold\n{docs.MARKS[1]}\nafter\n")
    code, out, _ = runner("--check")
    assert code == 1 and "README.md differs" in out and "-old" in out and "+| digits, LRP (z+) | 3 | not measured |" in out
    picture = runner.folder / "docs/figures/frontier_digits_lrp.png"
    assert f"{Path('docs/figures') / picture.name} is missing" in out
    assert runner("--docs")[0] == 0 and runner("--check")[0] == 0
    assert f"](figures/{picture.name})" in docs.DOCS.read_text()
    picture.write_bytes((REPOSITORY / "docs/figures/frontier_mnist_lrp.png").read_bytes())
    assert "frontier_digits_lrp.png is missing, or drawn from other results" in runner("--check")[1]
    text = docs.README.read_text().splitlines()
    assert text[:3] == ["before", docs.MARKS[0], ""] and text[3:-3] == summary_table(runs)
    assert text[-3:] == ["", docs.MARKS[1], "after"]
    other = picture.with_name("frontier_mnist_lrp.png")
    other.write_bytes(b"")
    code, out, _ = runner("--check")
    assert code == 1 and f"{Path('docs/figures') / other.name} shows no result of results/" in out
    other.unlink()
    begin, end = docs.MARKS
    for broken in (f"{begin}\n", f"{end}\n", f"{end}\n{begin}\n", f"{begin}\n{begin}\n{end}\n", f"{begin}\n{end}\n{end}\n"):
        docs.README.write_text(broken)
        for flag in ("--docs", "--check"):
            code, line = runner.fails(flag)
            assert code == 1 and "README.md: the place of its table is one line" in line
        assert docs.README.read_text() == broken
    docs.README.write_bytes("Größe".encode("latin-1"))
    code, line = runner.fails("--docs")
    assert code == 1 and "README.md: not UTF-8" in line
    docs.README.write_text("no place for a table\n")
    assert runner("--docs")[0] == 0 and docs.README.read_text() == "no place for a table\n"
    code, line = runner.fails("--docs", "--results", "nowhere")
    assert code == 1 and "--results: nowhere has no results in paper/ or reduced/" in line


def test_rows_of_one_colour_have_tints():
    colours = figures._tints({"predmi", "gnime", "gnime@30", "gnime@1000"})
    assert len(set(colours.values())) == 4 and colours["gnime"] == pytest.approx(to_rgb(colour(ROWS["gnime"])))
    assert sum(colours["gnime"]) < sum(colours["gnime@30"]) < sum(colours["gnime@1000"]) < 3, "paler, and not white"
