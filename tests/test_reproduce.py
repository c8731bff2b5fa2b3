"""The runner of the paper's table: stopped and continued, and what it refuses.

The digits are cut to what `small_root` is, so that the scripts' own results are the oracle of a cell.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import Killed, run_of, write

from gnime import cells, pipeline, reproduce, resuming, store, system, training
from gnime.config import OFFICIAL
from gnime.errors import Stopped
from gnime.report import docs
from gnime.report.groups import values
from gnime.report.paper import reduced_tables

REPOSITORY = Path(__file__).parent.parent
CELL = ["--preset", "reduced", "--targets", "digits", "--xai", "lrp", "--seeds", "0", "--gpu", "-1"]
FOUR = ["--settings", "predmi", "expmi", "rnd", "gnime"]


def same_result(measured, small_root):
    """All but commands, configuration (limit and epochs are flags of the scripts) and durations is the scripts'."""
    expected = json.loads((small_root / "figures/digits_lrp/results.json").read_text())
    for result in (measured, expected):
        for network in result["networks"].values():
            network.pop("seconds")
    for key in expected.keys() - {"command", "commands", "configuration", "duration", "costs"}:
        assert measured[key] == expected[key], key
    assert list(measured["settings"]) == list(expected["settings"])


# --- a cell ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_what_the_scripts_make(runner, small_root):
    code, out, _ = runner(*CELL, *FOUR)
    assert code == 0 and "[1/1] results/reduced/digits_lrp_seed0.json: made" in out
    measured = runner.measured()
    same_result(measured, small_root)
    assert measured["seed"] == 0 and measured["configuration"]["official"] == [] and measured["n"]["images"] == 60
    again = reproduce.parser().parse_args(shlex.split(measured["command"])[3:])
    asked = reproduce.parser().parse_args([*CELL, *FOUR])
    for flag in ("preset", "targets", "xai", "seeds", "settings", "official", "precision"):
        assert getattr(again, flag) == getattr(asked, flag), flag
    text = runner.result.read_text()
    for place in (runner.folder, Path.home(), REPOSITORY, ".reproduce/", "datasets"):
        assert str(place) not in text
    before = runner.result.stat().st_mtime_ns
    code, out, _ = runner(*CELL, "--settings", "gnime")
    assert code == 0 and "found" in out and runner.result.stat().st_mtime_ns == before


def test_the_command_of_another_mode_says_so(runner):
    code, _, _ = runner(*CELL, "--settings", "predmi", "--official", "--precision", "fp32")
    measured = json.loads((runner.folder / "results/reduced/digits_lrp_official_seed0.json").read_text())
    assert code == 0 and measured["configuration"]["official"] == list(OFFICIAL)
    assert measured["command"].endswith("--settings predmi --precision fp32 --official")
    assert not list((runner.folder / ".reproduce").rglob("injector.pt")), "PredMI needs none"


def test_single_choices_of_the_authors_are_runs_of_their_own(runner):
    code, _, _ = runner(*CELL, "--settings", "predmi", "--official", "validation", "order")
    measured = json.loads((runner.folder / "results/reduced/digits_lrp_official-order-validation_seed0.json").read_text())
    assert code == 0 and measured["configuration"]["official"] == ["order", "validation"]
    assert measured["command"].endswith("--settings predmi --official order validation")
    assert (runner.folder / ".reproduce/reduced_official-order-validation_seed0/models/victim/digits.pt").exists()


def test_a_budget_stops_and_the_same_command_goes_on(runner, small_root):
    code, out, lines = runner(*CELL, *FOUR, "--budget", "0.001")
    assert (code, lines) == (0, []) and "0 of 1 cells are done" in out
    assert (runner.root / "models/victim/digits.state.pt").exists() and not runner.result.exists()
    code, out, _ = runner(*CELL, *FOUR)
    assert code == 0 and "goes on from epoch 1" in out
    same_result(runner.measured(), small_root)


def test_a_budget_that_ends_before_anything_is_made(runner, monkeypatch):
    """As where the processes of --jobs were still starting."""
    def stopped(*_):
        raise Stopped("stopped")

    monkeypatch.setattr(pipeline, "prepare", stopped)
    code, out, lines = runner(*CELL, *FOUR, "--budget", "0.001")
    assert (code, lines) == (0, []) and "stopped; 0 of 1 cells are done" in out and not runner.root.exists()


def test_ctrl_c_is_no_budget(runner, small_root, monkeypatch):
    note = training._note_finite

    def pressed(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return note(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_note_finite", pressed)
        code, line = runner.fails(*CELL, *FOUR)
    assert code == 130 and "stopped after epoch 1" in line
    assert runner(*CELL, *FOUR)[0] == 0
    same_result(runner.measured(), small_root)


def test_killed_before_every_file_it_ends_with_the_same_result(runner, small_root, monkeypatch):
    """Each attempt dies when a file is about to appear that no attempt has died for."""
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    appear, died_for, page = Path.replace, [], Path("results/reduced/digits_lrp_report.html")

    def mortal(part, path):
        if path not in died_for:
            died_for.append(path)
            raise Killed
        return appear(part, path)

    monkeypatch.setattr(Path, "replace", mortal)
    code = None
    while code is None:
        with contextlib.suppress(Killed):
            code, _, _ = runner(*CELL, *FOUR)
        assert runner.result.exists() is (code == 0 or died_for[-1] == page)
    names = [path.name for path in died_for]
    assert names[0] == "digits_imgs.hkl" and len(names) > 15
    assert names[-4:] == ["results.csv", "per_image.csv", runner.result.name, page.name]
    same_result(runner.measured(), small_root)
    assert not list(runner.folder.rglob("*.part"))


def test_settings_added_later_join_those_that_are_there(runner, small_root):
    """In any order, and also where the networks are gone."""
    for settings in (["gnime", "rnd"], ["predmi"]):
        assert runner(*CELL, "--settings", *settings)[0] == 0
    assert list(runner.measured()["settings"]) == ["predmi", "rnd", "gnime"]
    shutil.rmtree(runner.folder / ".reproduce")
    assert runner(*CELL, "--settings", "expmi")[0] == 0
    same_result(runner.measured(), small_root)
    assert "--settings predmi expmi rnd gnime" in runner.measured()["command"]


def test_a_cell_that_the_budget_cuts_leaves_its_finished_settings(runner, small_root, monkeypatch):
    """The time is up while the third attacker trains. The result says what is missing, and the same command adds it."""
    note = training._note_finite

    def counted(task, *rest):
        if (runner.root / "models/inv/digits_expmi_lrp.pt").exists():
            monkeypatch.setattr(system, "_deadline", -1.0)
        return note(task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_note_finite", counted)
        code, out, _ = runner(*CELL, *FOUR, "--budget", "1000")
    assert code == 0 and "0 of 1 cells are done, and predmi expmi of results/reduced/digits_lrp_seed0.json" in out
    cut = runner.measured()
    assert list(cut["settings"]) == ["predmi", "expmi"] and "not finished, left out: rnd, gnime" in cut["warnings"]
    assert "--settings predmi expmi" in cut["command"]
    (finish,) = [line.removeprefix("to add them: ") for line in out.splitlines() if line.startswith("to add them: ")]
    assert "missing: rnd, gnime (seed 0)" in out.splitlines()
    asked = reproduce.parser().parse_args(shlex.split(finish)[3:])
    assert asked.settings == ["predmi", "expmi", "rnd", "gnime"] and asked.seeds == [0] and asked.root == Path(".reproduce")
    assert runner(*CELL, *FOUR)[0] == 0
    same_result(runner.measured(), small_root)


def test_the_command_that_finishes_has_the_places_of_this_machine(runner):
    given = ["--targets", "orl_faces", "--datasets", str(runner.folder / "my sets"), "--root", "r", "--results", "some where",
             "--gpu", "-1"]
    options, cell = reproduce.parser().parse_args(given), ("orl_faces", "lrp", 0)
    for told in ("--datasets '/path/to/my sets' ", ""):
        line = reproduce._here(f"python -m gnime.reproduce {told}--results '/path/to/my sets.py'", options, cell)
        asked = reproduce.parser().parse_args(shlex.split(line)[3:])
        assert (asked.datasets, asked.root) == (runner.folder / "my sets", Path("r"))
        assert asked.results == Path("/path/to/my sets.py"), "only a whole word is a place"
        assert asked.gpu == -1, "where there is a GPU, its precision is another one"
    line = reproduce._here("python -m gnime.reproduce --settings predmi", options, cell)
    assert reproduce.parser().parse_args(shlex.split(line)[3:]).results == Path("some where")


def test_a_cell_that_the_budget_cuts_loses_no_row(runner, monkeypatch):
    """Of a result whose networks are gone."""
    write(runner, "reduced", of_the_cell())
    before = runner.result.read_text()
    monkeypatch.setattr(pipeline, "evaluate", lambda run, trains: {"settings": {"predmi": {}}})
    code, out, _ = runner(*CELL, "--settings", "predmi", "--budget", "0.001")
    assert code == 0 and "0 of 1 cells are done" in out and "and predmi" not in out and runner.result.read_text() == before


def test_jobs_make_the_same_cell(runner, small_root):
    assert runner(*CELL, *FOUR, "--jobs", "2")[0] == 0
    same_result(runner.measured(), small_root)


def test_a_rehearsal_never_passes_for_the_preset(runner):
    code, _, _ = runner(*CELL, "--settings", "predmi", "--limit", "40")
    rehearsal = runner.folder / "results/reduced_limit40/digits_lrp_seed0.json"
    assert code == 0 and not runner.result.exists() and json.loads(rehearsal.read_text())["n"]["images"] == 40
    assert "--limit 40" in json.loads(rehearsal.read_text())["command"]
    assert docs.read_results(runner.folder / "results") == {}
    shutil.copytree(rehearsal.parent, runner.folder / "results/paper")
    code, line = runner.fails("--docs")
    assert code == 1 and "40 images is a rehearsal" in line


# --- what is refused -------------------------------------------------------------------------------------------------


def judged(*without):
    """A committed result, which pages show, without one of its parts. without: keys on the way to it."""
    run = json.loads((REPOSITORY / "results/reduced/digits_lrp_seed0.json").read_text())
    part = run
    for key in without[:-1]:
        part = part[key]
    del part[without[-1]]
    return json.dumps(run)


def without(key):
    return json.dumps({k: v for k, v in run_of(expmi=0.1).items() if k != key})


@pytest.mark.parametrize("text", [
    "", "{", json.dumps(run_of(expmi=0.1))[:-200], "[]", "{}", "3", "\xff", without("settings"), without("warnings"),
    without("commit"), json.dumps(run_of(expmi=0.1) | {"n": {"images": 3}}), json.dumps(run_of(expmi=0.1) | {"n": [3]}),
    json.dumps(run_of(expmi=0.1) | {"settings": {"expmi": {"psnr": 3}}}), json.dumps(run_of(other=0.1)),
    json.dumps(run_of(expmi=0.1) | {"settings": {"expmi": 3}}), json.dumps(run_of(expmi=float("nan"))),
    json.dumps(run_of(expmi=0.1, xai="other")), json.dumps(run_of(expmi=0.1) | {"configuration": {}}),
    judged("settings", "gnime", "best"), judged("settings", "rnd", "title"), judged("settings", "expmi", "attackers"),
    judged("networks"), judged("duration"), judged("hardware", "cores"), judged("configuration", "attackers"),
    judged("configuration", "stages", "inverter", "epochs"),
])
def test_a_damaged_result_is_one_line(runner, text):
    runner.result.parent.mkdir(parents=True)
    runner.result.write_bytes(text.encode("latin-1"))
    for flags in (CELL, ["--docs"], ["--check"]):
        code, line = runner.fails(*flags)
        assert code == 1 and "results/reduced/digits_lrp_seed0.json: damaged" in line
    assert runner.result.read_bytes() == text.encode("latin-1") and not docs.DOCS.exists() and not runner.root.exists()


@pytest.mark.parametrize("flags", [
    ["--budget", "0"], ["--budget", "-3"], ["--budget", "nan"], ["--budget", "soon"], ["--margin", "0"], ["--seeds", "-1"],
    ["--seeds", "x"], ["--seeds"], ["--seeds", str(2**31)], ["--targets", "../etc"], ["--targets", ".."], ["--xai", "shap"],
    ["--gpu", "-2"], ["--settings", "nothing"], ["--preset", "small"], ["--docs", "--check"], ["--unknown"],
    ["--targets", "digits", "faces"], ["--targets", "celeba"],
    ["--docs"], ["--check", "--seeds", "1"],
])
def test_bad_flags_are_one_line_and_nothing_is_made(runner, flags):
    code, line = runner.fails("--preset", "reduced", *flags)
    assert code == 2 and (flags[0] in line or flags[-1] in line)
    assert sorted(path.name for path in runner.folder.rglob("*")) == ["docs", "table1.csv"]


def test_a_result_of_another_precision_is_refused_or_named(runner):
    write(runner, "reduced", of_the_cell() | {"precision": "tf32"})
    code, line = runner.fails(*CELL, "--settings", "expmi")
    assert code == 1 and "digits_lrp_seed0.json: measured in tf32, this run computes in fp32" in line
    code, _, _ = runner(*CELL, "--settings", "predmi", "--precision", "bf16")
    named = runner.result.with_name("digits_lrp_bf16_seed0.json")
    assert code == 0 and json.loads(named.read_text())["precision"] == "bf16"
    found = docs.read_results(runner.folder / "results")
    assert {name: [run["precision"] for run in runs] for name, runs in found.items()} == {
        "reduced": ["bf16"], "reduced_tf32": ["tf32"]}
    text = docs.document(found)
    assert "## Reduced configurations, bf16" in text and "## Reduced configurations, tf32" in text and "(n=2)" not in text
    assert len(docs.charts(found)) == 2


def test_networks_of_another_training_are_refused_before_the_work(runner):
    """They would be used as they are, and the result be of another configuration than its command."""
    asked = [*CELL, "--limit", "60", "--settings", "predmi", "gnime"]
    assert runner(*asked, "--epochs", "3", "--results", "a")[0] == 0
    root = runner.folder / ".reproduce/own_limit60_seed0/models"
    for flags, told in ((["--epochs", "2"], "trained for 3 epochs, this run asks for 2"),
                        (["--epochs", "4"], "trained for 3 epochs, this run asks for 4"),
                        (["--epochs", "3", "--lr", "0.01"], "this run has learning rate 0.01")):
        code, line = runner.fails(*asked, *flags, "--results", "b")
        assert code == 1 and ".pt: trained " in line and told in line
        assert line.endswith("give the same --epochs, --batch-size and --lr again, or another --root")
    for kind in ("eval", "victim"):
        shutil.rmtree(root / kind)
    code, line = runner.fails(*asked, "--epochs", "2", "--results", "b")
    assert code == 1 and "injector.pt: trained for 3 epochs, this run asks for 2" in line
    assert not list((runner.folder / "b").rglob("*.json")) and not (root / "victim").exists()
    assert runner(*asked, "--epochs", "3", "--results", "a")[0] == 0, "found, whatever became of its networks"
    assert runner(*asked, "--epochs", "2", "--results", "b", "--root", "other")[0] == 0


def test_a_results_folder_that_cannot_be_written_is_found_before_the_work(runner):
    (runner.folder / "file").write_text("")
    code, line = runner.fails(*CELL, "--results", "file")
    assert code == 1 and "--results: file/reduced cannot be written" in line
    assert not (runner.folder / ".reproduce").exists()
    if os.geteuid():  # root may write anywhere
        closed = runner.folder / "closed/reduced"
        closed.mkdir(parents=True)
        closed.chmod(0o500)
        code, line = runner.fails(*CELL, "--results", "closed")
        assert code == 1 and "closed/reduced cannot be written" in line


def of_the_cell(**changes):
    options = reproduce.parser().parse_args(CELL)
    return run_of(name="digits", xai="lrp", expmi=0.1) | {
        "configuration": reproduce.cell_run("eval", options, ("digits", "lrp", 0)).describe() | changes}


@pytest.mark.parametrize(("changes", "told"), [
    ({"width": 128}, "width 128"), ({"limit": None}, "no --limit"), ({"weight": 2.0}, "weight 2.0"),
    ({"image": [1, 32, 32]}, "image (1, 32, 32)"), ({"stages": {}}, "no classifier, no injector, no inverter"),
    ({"attackers": ["predmi"]}, "attackers predmi"), ({"target": "mnist"}, "target mnist"), ({"xai": "grad"}, "xai grad"),
    ({"seed": 1}, "seed 1"), ({"drop_duplicates": "near"}, "--drop-duplicates near")])
def test_a_result_of_another_configuration_is_not_taken_for_this_one(runner, changes, told):
    write(runner, "reduced", of_the_cell(**changes))
    code, line = runner.fails(*CELL, "--settings", "expmi")
    assert code == 1 and f"digits_lrp_seed0.json: measured with {told}, this run has " in line and "--results" in line
    assert not runner.root.exists()


def test_a_result_without_networks_of_the_run_is_its_own():
    options, cell = reproduce.parser().parse_args(CELL), ("digits", "lrp", 0)
    result = json.loads(json.dumps(of_the_cell()))
    stages = result["configuration"]["stages"]
    result["settings"]["gnime"] = result["settings"]["expmi"]
    result["configuration"]["stages"] = stages | {"classifier": None, "injector": None}
    assert reproduce.difference(result | {"precision": "fp32"}, options, cell, {}) == ""
    result["configuration"]["stages"] = stages | {"inverter": stages["inverter"] | {"lr": 1.0}}
    assert reproduce.difference(result, options, cell, {}).startswith("measured with inverter learning rate 1.0, this run has "
                                                                    "inverter learning rate 0.001; move it away")
    result["configuration"]["stages"] = stages
    near = reproduce.parser().parse_args([*CELL, "--drop-duplicates", "near"])
    assert reproduce.difference(result, near, cell, {}).startswith(
        "measured with no --drop-duplicates, this run has near; move it away")


@pytest.mark.parametrize(("epochs", "same"), [(12, True), (20, True), (11, False)])
def test_a_classifier_that_stopped_early_is_that_of_more_epochs(epochs, same):
    options, cell = reproduce.parser().parse_args([*CELL, "--epochs", str(epochs)]), ("digits", "lrp", 0)
    result = run_of(name="digits", xai="lrp", expmi=0.1) | {"networks": {"victim": {"early": True, "epochs": 12}}}
    result["configuration"] = json.loads(json.dumps(reproduce.cell_run("eval", options, cell).describe()))
    assert result["configuration"]["stages"]["classifier"]["epochs"] == 30, "the target's, as a result has it then"
    assert (reproduce.difference(result, options, cell, {}) == "") is same


def a_record(name, xai):
    """A folder of a record, and the result of a run of it by hand: its path and content."""
    folder, random = Path("datasets") / name, np.random.default_rng(0)
    folder.mkdir(parents=True)
    for file, shape in (("images", (20, 16, 16)), ("predictions", (20, 3)), (f"explanations_{xai}", (20, 1, 8, 8))):
        np.save(folder / f"{file}.npy", random.random(shape))
    asked = ["--targets", name, "--xai", xai, "--seeds", "0", "--gpu", "-1", "--width", "128", "--settings", "expmi"]
    options, cell = reproduce.parser().parse_args(asked), (name, xai, 0)
    images = {"classes": 3, "images": 20, "names": hashlib.sha256(
        f"images.npy {hashlib.sha256((folder / 'images.npy').read_bytes()).hexdigest()}".encode()).hexdigest()}
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
             for file in ("predictions.npy", f"explanations_{xai}.npy")}
    run = reproduce.cell_run("eval", options, cell)
    content = run_of(name=name, xai=xai, expmi=0.1) | {
        "configuration": run.describe(), "source": images, "record": {"files": files}}
    return asked, reproduce.result_path(options, cell), content


def test_another_record_is_not_taken_for_this_one(runner):
    """Two records whose files have one name, and one whose files change."""
    asked, path, content = a_record("a", "b_c")
    other, same_path, _ = a_record("a_b", "c")
    assert path == same_path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    code, out, _ = runner(*asked)
    assert code == 0 and f"{path}: found" in out
    code, line = runner.fails(*other)
    assert code == 1 and 'measured with target a, this run has a_b' in line
    for file, told in (("predictions", "predictions.npy"), ("explanations_b_c", "explanations_b_c.npy"), ("images", "images")):
        whole = Path(f"datasets/a/{file}.npy").read_bytes()
        np.save(f"datasets/a/{file}.npy", np.load(f"datasets/a/{file}.npy")[::-1])
        code, line = runner.fails(*asked)
        assert code == 1 and f"{path}: of other data ({told}); move it away" in line
        Path(f"datasets/a/{file}.npy").write_bytes(whole)
    assert runner(*asked)[0] == 0 and not (runner.folder / ".reproduce").exists()


def test_seeds_of_other_data_and_damaged_ones_are_not_in_the_page(runner, monkeypatch):
    monkeypatch.delitem(cells.REDUCED, "digits")
    committed = shutil.copytree(REPOSITORY / "results/reduced", runner.result.parent)
    for seed, images in ((0, "a"), (1, "b"), (2, "a")):
        path = committed / f"digits_lrp_seed{seed}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"source": {"names": images}}))
    (committed / "digits_lrp_seed7.json").write_text("{")
    (committed / "digits_lrp_seed8.json").mkdir()
    (committed / "digits_lrp_seed9.json").write_text(judged("settings", "gnime", "best"))
    code, out, _ = runner(*CELL[:-3], "1", "--gpu", "-1", "--settings", "expmi")
    assert code == 0 and "digits_lrp_seed1.json: found" in out and "digits, lrp: one seed: no spread" in out
    for seed, reason in ((0, "of other data (images)"), (2, "of other data (images)"), (7, "damaged, or not a run's result"),
                         (8, "cannot be read (Is a directory)"), (9, "damaged, or not a run's result")):
        assert f"digits_lrp_seed{seed}.json: not in the page of all seeds: {reason}" in out
    assert "--seeds 1 " in (committed / "digits_lrp_report.html").read_text()
    code, out, _ = runner(*CELL[:-3], "0", "--gpu", "-1", "--settings", "expmi")
    assert code == 0 and "over 2 seeds" in out and "seed1.json: not in the page" in out


def test_rows_that_another_process_adds_meanwhile_are_kept(runner, monkeypatch):
    """The other one writes while this one waits for the lock, which this one then holds."""
    write(runner, "reduced", of_the_cell())
    lock, measured = store.artifact_lock, []

    def after_another(path, root):
        result = of_the_cell()
        result["settings"]["rnd"] = result["settings"]["expmi"]
        write(runner, "reduced", result)
        return lock(path, root)

    def measure(options, cell, settings):
        with (runner.result.parent / f".{runner.result.name}.lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        measured.append(settings)

    monkeypatch.setattr(store, "artifact_lock", after_another)
    monkeypatch.setattr(reproduce, "run_cell", measure)
    assert runner(*CELL, "--settings", "predmi")[0] == 0 and measured == [("predmi", "expmi", "rnd")]
    write(runner, "reduced", of_the_cell())
    code, out, _ = runner(*CELL, "--settings", "rnd")
    assert code == 0 and "seed0.json: found" in out and len(measured) == 1


def test_residual_leakage_by_different_attackers_is_not_averaged():
    one, other = (run_of(seed, expmi=0.1) for seed in (0, 1))
    for run, leak in ((one, 0.2), (other, 0.4)):
        run["settings"]["expmi"]["residual_leakage"] = leak
    assert values([one, other], "expmi", "residual_leakage") == [0.2, 0.4]
    other["configuration"]["attackers"] = ["predmi", "expmi", "kernel"]
    assert values([one, other], "expmi", "residual_leakage") == [0.4] and values([one, other], "expmi", "mse") == [0.1, 0.1]
    text = "\n".join(reduced_tables([one, other]))
    assert "Residual leakage: of seed 1, with the attackers predmi, expmi, kernel; the other seeds had fewer." in text
    assert "the other seeds" not in "\n".join(reduced_tables([other]))


def test_what_is_asked_twice_is_measured_once(runner):
    write(runner, "reduced", of_the_cell())
    code, out, _ = runner(*CELL, "--seeds", "0", "0", "--targets", "digits", "digits", "--settings", "expmi", "expmi")
    found, skipped = out.splitlines()
    assert code == 0 and found == "[1/1] results/reduced/digits_lrp_seed0.json: found"
    assert "not in the page of all seeds: measured by a version without a verdict" in skipped, "nor is there a page"
