"""Several seeds of one run: the flags against the scripts', the table and the page against numpy and numbers by hand."""

import copy
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import Page, drawn

from gnime import ownentries, reproduce
from gnime.cells import cell_run, kept_as, parser, result_path
from gnime.cli import resolve
from gnime.ownfiles import load_own
from gnime.registry import find_row
from gnime.report import charts, seeds

REPOSITORY = Path(__file__).parent.parent
DEFINED = {("predmi", 3): "0 %", ("predmi", 5): "no map", ("expmi", 3): "100 %", ("expmi", 5): "1.00"}  # row, column
PLUS = re.compile(r"(-?[\d.]+)(?: ± ([\d.]+))?")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the files of docs/own-model.md, and weights that were not trained."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    tutorial = (REPOSITORY / "docs/own-model.md").read_text()
    for name, text in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", tutorial, re.DOTALL):
        Path(name).write_text(text)
    torch.save(load_own("serve.py:Net")().state_dict(), "weights.pt")
    yield tmp_path
    ownentries.register(())


@pytest.fixture
def digits():
    """The three committed runs of the digits, to be changed at will."""
    return [json.loads((REPOSITORY / f"results/reduced/digits_lrp_seed{seed}.json").read_text()) for seed in range(3)]


# --- the flags -------------------------------------------------------------------------------------------------------

BOTH = ["--limit", "50", "--image-size", "32", "--published", "label", "--width", "128", "--epochs", "3", "--batch-size", "7",
        "--lr", "0.01", "--official", "order", "--gpu", "-1", "--precision", "fp32", "--deterministic"]
PICTURES = ["--skip-bad", "--drop-duplicates", "near"]


@pytest.mark.parametrize("mine", [[], ["--victim", "serve.py:model", "--scale", "signed"]], ids=["the paper's", "own"])
def test_each_script_runs_as_with_the_same_flags(own, mine):
    xai, blurred = ("serve.py:input_gradient", "mine.py:blurred") if mine else ("grad", "cond-mean")
    attackers = ["--attackers", "kernel", *(["mine.py:Nearest"] if mine else [])]
    options = parser().parse_args(["--targets", "faces", "--xai", xai, *BOTH, *mine, *PICTURES, "--weight", "30", "--settings",
                                   "predmi", blurred, *attackers, "--jobs", "3"])
    rows = ["predmi", blurred, "gnime@30"]
    of_its_own = {"prepare": PICTURES, "train": ["--weight", "30"], "eval": ["--settings", *rows, *attackers]}
    for script, more in of_its_own.items():
        made = cell_run(script, options, ("faces", xai, 1), tuple(row.rpartition(":")[2] for row in rows))
        asked = resolve(script, ["--target", "faces", "--xai", xai, "--seed", "1", *BOTH, *mine, *more,
                                 "--root", str(made.root)])
        if script != "eval":  # that its rows' objects are registered for all three changes nothing
            made = replace(made, attackers=asked.attackers, files=asked.files)
        assert replace(made, datasets=asked.datasets) == asked


def test_the_command_of_own_model_md(own):
    (command,) = re.findall(r"^    python -m gnime\.reproduce (.*?)\n\n", (REPOSITORY / "docs/own-model.md").read_text(),
                            re.MULTILINE | re.DOTALL)
    options = parser().parse_args(shlex.split(command.replace("\\\n", " ")))
    path = result_path(options, (options.targets[0], options.xai[0], options.seeds[-1]))
    assert path.as_posix() == "results/own/digits_model_input_gradient_seed2.json"


def test_a_flag_that_changes_a_preset_keeps_its_results_apart():
    def kept(*flags, name="digits", xai="lrp"):
        return kept_as(parser().parse_args(list(flags)), (name, xai, 0))

    assert (kept(), kept("--preset", "reduced"), kept("--limit", "9")) == ("paper", "reduced", "paper_limit9")
    assert kept("--weight", "30", "--jobs", "2", "--attackers", "all", "--gpu", "-1") == "paper", "rows and attackers are told"
    for flags in (["--width", "64"], ["--epochs", "3"], ["--lr", "0.1"], ["--batch-size", "9"], PICTURES[:1], PICTURES[1:]):
        assert kept(*flags) == kept(*flags, "--preset", "reduced") == "own"
    assert kept("--layer", "relu0", xai="gradcam") == "own"
    options = parser().parse_args(["--targets", "digits", "--xai", "gradcam", "--layer", "relu0"])
    assert result_path(options, ("digits", "gradcam", 2)).as_posix() == "results/own/digits_gradcam@relu0_seed2.json"
    assert kept(name="faces") == "own" and kept("--limit", "9", name="faces") == "own_limit9"
    options = parser().parse_args(["--targets", "faces", "--image-size", "32"])
    assert result_path(options, ("faces", "lrp", 2)).as_posix() == "results/own/faces_lrp_seed2.json"
    assert cell_run("eval", options, ("faces", "lrp", 2)).root.as_posix() == ".reproduce/own_seed2"


@pytest.mark.parametrize(("flags", "named"), [
    (["--image-size", "32"], "--image-size: the size of digits is fixed"), (["--scale", "signed"], "--scale"),
    (["--layer", "relu0"], "--layer: lrp does not take a layer"),
    (["--width", "100"], "--width"), (["--victim", "nowhere.py:model"], "nowhere.py"),
    (["--xai", "nowhere.py:maps"], "nowhere.py"), (["--settings", "nowhere.py:blur"], "nowhere.py"),
    (["--attackers", "nobody"], "nobody")])
def test_flags_of_the_scripts_are_refused_as_there(runner, flags, named):
    code, line = runner.fails("--targets", "digits", "--xai", "lrp", "--gpu", "-1", *flags)
    assert code == 2 and named in line and not runner.root.parent.exists()


def test_a_run_of_ones_own_with_two_seeds(own, runner):
    small = ["--targets", "digits", "--limit", "40", "--width", "64", "--epochs", "1", "--gpu", "-1", "--victim",
             "serve.py:model", "--xai", "serve.py:input_gradient", "--seeds", "0", "1"]
    rows = ["--settings", "predmi", "expmi", "mine.py:blurred", "--attackers", "mine.py:Nearest"]
    code, out, lines = runner(*small, *rows)
    assert (code, lines) == (0, [])
    folder = own / "results/own_limit40"
    page = folder / "digits_model_input_gradient_report.html"
    paths = [folder / f"digits_model_input_gradient_seed{seed}.json" for seed in (0, 1)]
    assert {path for path in folder.iterdir() if path.suffix != ".lock"} == {page, *paths}
    assert out.splitlines()[-1] == f"report: {page.relative_to(own)}"
    found = [json.loads(path.read_text()) for path in paths]
    (line,) = [line.split() for line in out.splitlines() if line.startswith("blurred ") and "±" in line]
    errors = [result["settings"]["blurred"]["best"]["mse"] for result in found]
    assert (line[1], line[3], line[-1]) == (f"{np.mean(errors):.4f}", f"{np.std(errors, ddof=1):.4f}", "2")
    for seed, result in enumerate(found):
        assert result["settings"].keys() == {"predmi", "expmi", "blurred"} and result["n"]["images"] == 40
        again, asked = parser().parse_args(shlex.split(result["command"])[3:]), parser().parse_args([*small, *rows])
        assert vars(again) == vars(asked) | {"seeds": [seed], "gpu": 0}, "all but the device"
    assert "--settings predmi expmi mine.py:blurred --" in page.read_text()
    assert "Every seed has your victim" in page.read_text() and "weights of your victim changed" not in page.read_text()
    found[1]["networks"]["victim"]["digest"] = "another"
    assert "the weights of your victim changed between the seeds" in seeds.render(found, {})

    before = page.read_text()
    code, out, _ = runner(*small, *rows)
    assert code == 0 and out.count(": found") == 2 and page.read_text() == before
    code, line = runner.fails(*small, "--settings", "predmi", "--attackers", "kernel")
    assert code == 1 and "seed0.json: measured with --settings mine.py:blurred --attackers mine.py:Nearest; give" in line
    code, line = runner.fails(*small, *rows, "--width", "128")
    assert code == 1 and "seed0.json: measured with width 64, this run has 128; move it away, or give another" in line
    Path("mine.py").write_text(Path("mine.py").read_text().replace("3, 1, 1", "5, 1, 2"))
    code, line = runner.fails(*small, *rows)
    assert code == 1 and "seed0.json: measured with another content of mine.py:blurred and mine.py:Nearest; move it" in line


def test_a_place_of_one_machine_is_a_placeholder_in_the_command(own):
    for datasets, shown in ((str(own / "sets"), "--datasets /path/to/sets "), ("sets", "--datasets sets "), ("datasets", "")):
        options = parser().parse_args(["--targets", "digits", "--victim", f"{own}/serve.py:model", "--datasets", datasets])
        cell = "digits", "lrp", 0
        measured = {"configuration": {"gpu": 0}, "settings": {"predmi": {}}}
        reproduce._write_result(options, cell, cell_run("eval", options, cell), measured)
        assert "--victim /path/to/serve.py:model " in measured["command"] and shown in measured["command"]
        assert str(own) not in result_path(options, cell).read_text() and ("--datasets" in measured["command"]) is bool(shown)


# --- the table and the page ------------------------------------------------------------------------------------------


def test_the_page_shows_means_and_deviations(digits):
    text = seeds.render(digits[::-1], {})
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "a", "form", "img"} & set(page.tags) and not page.addresses
    assert "default-src 'none'" in text and "url(" not in text
    terminal = {line.split()[0]: line for line in seeds.lines(digits) if line}
    for name in digits[0]["settings"]:
        rows = [run["settings"][name] for run in digits]
        cells = [cell.strip() for cell in page.cells["data-row", name]]
        for column, values, scale, digit in ((3, [row["residual_leakage"] for row in rows], 100, 0.5),
                                             (5, [row.get("pearson") for row in rows], 1, 0.005),
                                             (7, [row["best"]["mse"] for row in rows], 1, 0.00005)):
            cell = cells[column]
            assert cell in terminal[name]
            if (name, column) in DEFINED:
                assert cell == DEFINED[name, column]
                continue
            mean, spread = map(float, PLUS.match(cell).groups())
            values = scale * np.array(values)
            assert (mean, spread) == pytest.approx((values.mean(), values.std(ddof=1)), abs=1.001 * digit), name
        assert cells[1] == "3" and terminal[name].endswith(" 3")
        leaks = page.cells["data-leak", name][1:]
        assert [round(100 * row["residual_leakage"]) for row in rows] == [int(cell.split(" ")[0]) for cell in leaks]
    words = " ".join(" ".join(page.text).split())
    for run in digits:
        assert all(warning in words for warning in run["warnings"]) and run["verdict"]["sentence"][1:] in words
    assert re.search("--seeds 0 1 2 (--datasets [^ ]+ )?--settings", words)
    assert "uncertain by about 50 %" in words  # 1 / sqrt(2 (3 - 1))


def test_one_seed_has_no_spread(digits):
    text = seeds.render(digits[:1], {})
    assert "One seed: no spread" in text and "±" not in text
    lines = seeds.lines(digits[:1])
    assert lines[0] == "digits, lrp: one seed: no spread" and not any("±" in line for line in lines)
    assert lines[-1] == f"warnings: {len(digits[0]['warnings'])}, listed on the page"
    assert lines[-2].startswith("publish: cond-mean (mean explanation given the prediction). This is the verdict of seed 0. "
                                "Its maps correlate by 0.92 with the true ones. By measurement they leave 10 % of the leak, ")
    digits[0]["configuration"]["layer"] = "conv2"
    assert seeds.lines(digits[:1])[0] == "digits, lrp of conv2: one seed: no spread"


def test_the_command_has_the_rows_of_every_seed(digits):
    rows = list(digits[0]["settings"])
    for run in digits[:2]:
        run["settings"] = {name: run["settings"][name] for name in ("predmi", "expmi", "gnime")}
        run["configuration"]["settings"] = list(run["settings"])
        run["command"] = run["command"].replace(" ".join(rows), "predmi expmi gnime")
        assert run["command"].count("gnime") == 2, "the module's name and the row"
    (command,) = re.findall("<pre>(.*)</pre>", seeds.render(digits, {}))
    asked = parser().parse_args(shlex.split(command)[3:])
    assert asked.settings == rows and asked.seeds == [0, 1, 2] and asked.preset == "reduced"


def test_seeds_that_disagree_are_told(digits):
    del digits[1]["settings"]["cond-mean"]
    digits[2]["settings"]["gnime"]["residual_leakage_interval"] = None  # nothing can be said of it there
    digits[0]["warnings"], digits[1]["warnings"], digits[2]["warnings"] = ["rnd: a", "rnd: b"], ["rnd: a"], ["rnd: a"]
    runs = seeds.gather(digits)
    assert [verdict.publish for verdict in runs.verdicts] == ["cond-mean", "predmi", "cond-mean"]
    assert seeds.agreement(runs).startswith("the seeds disagree: cond-mean (seeds 0, 2); the prediction without a map (seed "
                                            "1). Take no single seed's verdict")
    page = Page(seeds.render(digits, {}))
    assert page.cells["data-row", "cond-mean"][1].strip() == "2"
    assert page.cells["data-leak", "cond-mean"][2] == "not measured"
    assert page.cells["data-leak", "gnime"][3] == "not known" and page.cells["data-leak", "expmi"][1:] == ["100 %"] * 3
    gnime = [run["settings"]["gnime"]["residual_leakage"] for run in digits[:2]]
    told = f"{100 * np.mean(gnime):.0f} ± {100 * np.std(gnime, ddof=1):.0f} % (n=2)"
    assert page.cells["data-row", "gnime"][3].strip() == told
    words = " ".join(" ".join(page.text).split())
    assert "Warning (all 3 seeds): rnd: a." in words and "Warning (seed 0): rnd: b." in words and "2 warnings:" in words


def test_stronger_attackers_and_missing_rows(digits):
    for run, leak in zip(digits, (0.5, 0.7, 0.6), strict=True):
        run["settings"] = {name: run["settings"][name] for name in ("predmi", "expmi", "gnime")}
        run["settings"]["gnime"]["beside"] = {"white-box": {"attacker": "white-box", "mse": 0.1, "residual_leakage": leak,
                                                            "residual_leakage_interval": [leak - 0.1, leak + 0.1]}}
    assert "(60 ± 10 % to white-box)" in seeds.sentence(seeds.gather(digits))
    for run in digits:
        del run["settings"]["gnime"]
    assert seeds.sentence(seeds.gather(digits)).startswith("No defence was measured")
    assert seeds.agreement(seeds.gather(digits)).startswith("nothing yet, because no defence was measured. Not ")
    unknown = copy.deepcopy(digits)
    for run in unknown:
        run["settings"]["rnd"] = run["settings"]["expmi"] | {"residual_leakage": None, "title": "Gaussian noise"}
    assert seeds.sentence(seeds.gather(unknown)) == ("Nothing can be said of Gaussian noise: the undefended maps help the "
                                                     "attackers too little to measure a leak.")
    del unknown[1]["settings"]["expmi"]
    assert "to measure a leak (seeds 0, 2); the row expmi, to which every leak is relative, is not finished (seed 1)." in (
        seeds.sentence(seeds.gather(unknown)))


def test_a_run_that_was_cut_says_what_is_missing_and_what_finishes_it(digits, monkeypatch):
    """Seed 1 lacks three rows, and seeds 3 and 4 everything."""
    for name in ("predmi", "expmi", "cond-mean"):
        del digits[1]["settings"][name]
    for row in digits[1]["settings"].values():
        row["residual_leakage"] = None
        row.pop("residual_leakage_interval", None)
    *_, verdict, publish, missing, _ = seeds.lines(digits, range(5))
    assert verdict.startswith("verdict: GNIME leaves ") and " % (n=2) of the leak to the best attacker, and" in verdict
    assert publish.startswith("publish: cond-mean (mean explanation given the prediction). This is the verdict of seeds 0, 2. "
                              "Seed 1 cannot say yet. Its maps")
    assert missing == "missing: predmi, expmi, cond-mean (seed 1); every row (seeds 3, 4)"
    text = seeds.render(digits, {}, range(5))
    page = Page(text)
    assert f"Missing: {missing.removeprefix('missing: ')}. The command under" in " ".join(" ".join(page.text).split())
    assert page.cells["data-leak", "gnime"][2] == "not known" and page.cells["data-leak", "expmi"][2] == "not measured"
    assert "no leak found" not in page.cells["data-row", "gnime"][2]
    (command,) = re.findall("<pre>(.*)</pre>", text)
    asked = parser().parse_args(shlex.split(command)[3:])
    assert asked.seeds == [0, 1, 2, 3, 4] and asked.settings == digits[1]["configuration"]["settings"]

    cut = [digits[1]]
    assert seeds.lines(cut)[-4:-2] == [
        "verdict: Nothing can be said of GNIME: the rows predmi and expmi, to which every leak is relative, are not finished.",
        "publish: nothing yet, because no leak is known without predmi and expmi. Not measured here, and bounded: cond-mean "
        "(eval.py --settings)."]
    captions = []
    monkeypatch.setattr(seeds, "draw_frontier", lambda file, rows, caption, narrow: (captions.append(caption), file.touch()))
    seeds.frontiers(seeds.gather(digits))
    assert "gnime" in captions[0].hollow and captions[0].bold == "cond-mean", "seed 1, which cannot say, does not count"
    assert seeds.frontiers(seeds.gather(cut)) == {} and "No chart: no row has both numbers yet." in seeds.render(cut, {})
    assert seeds.lines(digits[::2])[-2].startswith("publish: "), "nothing is missing"


def test_the_frontier_has_a_cross_for_each_row(digits, monkeypatch):
    for run in digits:  # controls that lie below the picture, and one that lies on expmi
        for name in ("negative", "permutation", "blank", "rnd-0"):
            del run["settings"][name]
    runs = seeds.gather(digits)
    caption = charts.Caption("three seeds", ("gnime",), "dominated in every seed", "cond-mean", "")
    figure = drawn(monkeypatch, charts.draw_frontier, [runs.point(name) for name in runs.names], caption)
    (axis,) = figure.axes
    crosses = {}
    for point in axis.containers:
        across, up = (bars.get_segments()[0] for bars in point.lines[2])
        crosses[tuple(point.lines[0].get_xydata()[0])] = (np.ptp(across[:, 0]) / 2, np.ptp(up[:, 1]) / 2)
    for name in digits[0]["settings"]:
        if find_row(name).defence:
            leaks, kept = ([run["settings"][name][key] for run in digits] for key in ("residual_leakage", "pearson"))
            (cross,) = [crosses[at] for at in crosses if at == pytest.approx((np.mean(leaks), np.mean(kept)))]
            assert cross == pytest.approx((np.std(leaks, ddof=1), np.std(kept, ddof=1)), abs=1e-9)
