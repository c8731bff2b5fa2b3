"""Any command line ends in a run or in exit code 2 with one line; never in a traceback."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from gnime import pipeline
from gnime.cli import main, resolve
from gnime.config import Run
from gnime.errors import GnimeError
from gnime.sources import open_source

WORDS = st.one_of(
    st.sampled_from(["mnist", "cifar10", "celeba", "digits", "faces", "grad", "gradcam", "lrp", "predmi", "gnime", "fp32",
                     "bf16",
                     "0", "1", "-1", "7", "64", "2048", "1e-3", "nan", "inf", "-inf", "", " ", ".", "..", "/", "~",
                     "../../etc", "99999999999999999999", "0x10", "1_000", "--", "-", "--help", "--gpu", "\n", "é", "写真"]),
    st.integers(-10, 10**12).map(str), st.floats().map(str), st.text(max_size=8))
FLAGS = st.sampled_from(["--target", "--xai", "--gpu", "--root", "--datasets", "--seed", "--limit", "--width", "--epochs",
                         "--batch-size", "--official", "--image-size", "--weight", "--settings", "--precision", "--skip-bad",
                         "--deterministic", "--version", "--tar"])
LINES = st.lists(st.one_of(FLAGS, WORDS, st.tuples(FLAGS, WORDS)), max_size=8).map(
    lambda parts: [word for part in parts for word in (part if isinstance(part, tuple) else (part,))])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["prepare", "train", "eval"]), LINES)
def test_any_line_resolves_or_is_refused(script, line):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run = resolve(script, line)
        except SystemExit as stop:
            assert stop.code in (0, 2)
            assert stop.code == 0 or err.getvalue().count("error:") >= 1 and "Traceback" not in err.getvalue()
            return
    assert isinstance(run, Run)
    assert run.summary() and run.command("train") and run.describe()
    assert run.train_config("classifier").epochs >= 1 and run.target.width % 64 == 0


VALUES = {
    "--limit": ["1", "19", "20", "21", "50"], "--epochs": ["1"], "--batch-size": ["1", "7", "1000"], "--seed": ["0", "5"],
    "--width": ["64", "128"], "--xai": ["grad", "gradcam", "lrp"], "--precision": ["fp32", "tf32", "bf16"],
    "--target": ["digits", "nowhere"], "--gpu": ["-1"],
}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({flag: st.sampled_from(VALUES[flag]) for flag in ("--gpu", "--limit", "--epochs")},
                             optional={flag: st.sampled_from(values) for flag, values in VALUES.items()
                                       if flag not in ("--gpu", "--limit", "--epochs")}),
       st.booleans())
@example({"--gpu": "-1", "--limit": "1", "--epochs": "1", "--target": "nowhere", "--width": "64"}, False)
def test_real_runs_end_well_or_say_why(tmp_path_factory, no_pictures, flags, official):
    root = tmp_path_factory.mktemp("fuzz")
    line = [word for pair in flags.items() for word in pair] + ["--root", str(root)] + ["--official"] * official
    for script in ("prepare", "train", "eval"):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            try:
                code = main(script, line)
            except SystemExit as stop:  # bad usage: --width 64 for images of side 128
                code = stop.code
        assert code == 0 or (code in (1, 2) and err.getvalue().count("error:") == 1), (script, line, err.getvalue())


def test_memory_that_runs_out_becomes_advice(monkeypatch, capsys, tmp_path):
    def exhausted(run):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(pipeline, "prepare", exhausted)
    assert main("prepare", ["--root", str(tmp_path)]) == 1
    line = capsys.readouterr().err
    assert "--batch-size" in line and "Traceback" not in line


def test_other_faults_keep_their_traceback(monkeypatch, tmp_path):
    def broken(run):
        raise RuntimeError("a bug")

    monkeypatch.setattr(pipeline, "prepare", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main("prepare", ["--root", str(tmp_path)])


def test_two_thousand_classes(tmp_path):
    pixels = Image.fromarray(np.zeros((4, 4), np.uint8))
    for i in range(2000):
        folder = tmp_path / "datasets" / "many" / f"{i:04d}"
        folder.mkdir(parents=True)
        pixels.save(folder / "one.png")
    source = open_source(resolve("prepare", ["--target", "many", "--root", str(tmp_path), "--image-size", "16"]))
    assert len(source.classes) == 2000 and list(source.labels) == list(range(2000))
    assert source.read(range(1990, 2000)).shape == (10, 3, 16, 16)


def test_unreadable_folder_is_named(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "loop").symlink_to(tmp_path / "datasets" / "loop")
    with pytest.raises(GnimeError, match="loop"):
        open_source(resolve("prepare", ["--target", "loop", "--root", str(tmp_path)]))
