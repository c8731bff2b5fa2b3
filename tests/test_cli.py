"""The command line: what answers at once, and one clear line for everything that is wrong."""

import io
import os
import pickle
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import hickle
import numpy as np
import pytest
import torch
from PIL import Image

from gnime import experiment
from gnime.checkpoints import load_checkpoint
from gnime.cli import guarded, main, resolve
from gnime.config import OFFICIAL
from gnime.device import Device
from gnime.errors import GnimeError, Stopped, UsageError

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = ("prepare", "train", "eval")
HEAVY = {"torch", "torchvision", "numpy", "h5py", "hickle", "matplotlib", "PIL", "sklearn", "tqdm"}


def contents(root):
    """Every file but locks and the like: what a failed script must leave as it was."""
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once(script):
    """The least of three, in processor time: other work on the machine does not count."""
    spent = []
    for _ in range(3):
        before = os.times()
        run = subprocess.run([sys.executable, "-X", "importtime", f"{script}.py", "--help"], cwd=REPOSITORY,
                             capture_output=True, text=True, check=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
        if spent[-1] < 0.5:
            break
    assert min(spent) < 0.5
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "argparse" in imported and not imported & HEAVY
    for word in ("data and explainer:", "training (defaults: the paper's):", "device and folders:", "(default: digits)",
                 "(default: lrp)", "(default: 0)", "(default: 2048; digits 256)"):
        assert word in " ".join(run.stdout.split())


@pytest.mark.parametrize(("script", "words"), [
    ("prepare", ["(default: 100; digits 30)", "(default: 256; faces and folders 128; digits 32)"]),
    ("train", ["(default: 500; digits 250)", "(default: 1024; faces and folders 128; digits 64)",
               "(default: 100; faces and folders 500; digits 300)"]),
    ("eval", ["(default: 300; digits 150)", "(default: 128; digits 32)", "(default: predmi expmi rnd gnime)"])])
def test_help_shows_the_defaults(script, words, capsys):
    with pytest.raises(SystemExit):
        main(script, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(word in shown for word in words)


def test_the_bare_scripts_run_the_embedded_data(tmp_path):
    for script in SCRIPTS:
        run = resolve(script, [])
        assert (run.target.name, run.xai, run.gpu, run.root, run.datasets) == ("digits", "lrp", 0, Path(), Path("datasets"))
    assert resolve("eval", []).rows == ("predmi", "expmi", "rnd", "gnime")
    assert resolve("eval", ["--settings", "gnime", "predmi", "gnime"]).rows == ("gnime", "predmi"), "each once"
    assert resolve("prepare", ["--target", "celeba", "--xai", "lrp", "--gpu", "0"]).target.size == 128


def test_official_takes_all_choices_or_some():
    def official(*words):
        return resolve("eval", [*words, "--seed", "1"]).official

    assert official() == ()
    assert official("--official") == tuple(OFFICIAL) == official("--official", *reversed(OFFICIAL))
    assert official("--official", "order", "scale", "order") == ("scale", "order"), "each once, in one order"
    assert "mode official scale order," in resolve("train", ["--official", "order", "scale"]).summary()
    assert "mode official," in resolve("train", ["--official"]).summary()


# --- bad flags -------------------------------------------------------------------------------------------------------

BAD = [["--epochs", "-1"], ["--epochs", "0"], ["--epochs", "1.5"], ["--epochs", "x"], ["--epochs", str(2**31)], ["--epochs"],
       ["--batch-size", "0"], ["--batch-size", "-4"], ["--limit", "0"], ["--limit", "-3"], ["--limit", "nan"],
       ["--width", "0"], ["--width", "63"], ["--width", "100"], ["--width", "131072"], ["--gpu", "-2"], ["--gpu", "x"],
       ["--seed", "-1"], ["--seed", "1e3"], ["--xai", "shap"], ["--xai"], ["--precision", "fp64"], ["--target", ""],
       ["--target", "../x"], ["--target", "a/b"], ["--target", ".hidden"], ["--target", "/etc"], ["--target", "x\0"],
       ["--target", "x" * 201], ["--target", "digits", "--image-size", "32"], ["--target", "faces", "--image-size", "15"],
       ["--root", "a\0b"], ["--datasets", "a\0b"], ["--targ", "digits"], ["--nope"], ["digits"], ["--gpu", "0", "1"]]


@pytest.mark.parametrize("flags", BAD, ids=lambda flags: " ".join(flags).replace("\0", "NUL")[:40])
@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_flags(scripts, tmp_path, script, flags):
    code, line = scripts.fails(script, tmp_path / "root", *flags, small=False)
    assert code == 2 and (flags[2] if len(flags) > 2 else flags[0]) in line
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(("script", "flags"), [
    ("train", ["--weight", "-1"]), ("train", ["--weight", "nan"]), ("train", ["--weight", "inf"]), ("train", ["--weight", "x"]),
    ("eval", ["--settings", "nope"]), ("eval", ["--settings"]), ("eval", ["--weight", "1"]), ("train", ["--settings", "rnd"]),
    ("train", ["--skip-bad"])])
def test_bad_flags_of_one_script(scripts, tmp_path, script, flags):
    code, line = scripts.fails(script, tmp_path, *flags, small=False)
    assert code == 2 and flags[0] in line


# --- the machine -----------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device(resolve("prepare", ["--gpu", "7"])).torch.type == "cpu"
    assert capsys.readouterr().out == "no CUDA device: --gpu 7 is ignored, the run uses the CPU\n"
    assert Device(resolve("prepare", ["--gpu", "-1"])).torch.type == "cpu"
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="tf32"):
        Device(resolve("prepare", ["--precision", "tf32"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(GnimeError, match=r"--gpu 7: this machine has 1 CUDA"):
        Device(resolve("prepare", ["--gpu", "7"]))


@pytest.mark.parametrize("at", ["", "models", "aux", "figures"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_root_that_cannot_be_written(scripts, tmp_path, script, at):
    """A file where a folder must be: that stops even an administrator."""
    root = tmp_path / "root"
    (root / at).parent.mkdir(exist_ok=True)
    (root / at).write_text("in the way")
    code, line = scripts.fails(script, root)
    assert code == 1 and "--root" in line and str(root / at) in line
    assert (root / at).read_text() == "in the way"


@pytest.mark.parametrize(("script", "flags", "message"), [
    ("prepare", ["--target", "nowhere", "--width", "128"], "--target nowhere: the folder "),
    ("prepare", ["--limit", "1"], "--limit 1"),
    ("train", [], "no such folder; make it with: python prepare.py"), ("eval", [], "make it with: python prepare.py")])
def test_a_run_that_cannot_begin_makes_nothing(scripts, tmp_path, script, flags, message):
    _, line = scripts.fails(script, tmp_path / "root", *flags)
    assert message in line
    assert not list(tmp_path.iterdir())


def test_an_artifacts_folder_that_cannot_be_made(scripts, root_copy):
    (root_copy / "models/victim/digits.pt").unlink()
    for left in (root_copy / "models/victim").iterdir():
        left.unlink()
    (root_copy / "models/victim").rmdir()
    (root_copy / "models/victim").write_text("in the way")
    code, line = scripts.fails("prepare", root_copy)
    assert code == 1 and "models/victim" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may write everywhere")
def test_a_root_without_permission(scripts, tmp_path):
    tmp_path.chmod(0o500)
    assert scripts.fails("prepare", tmp_path)[0] == 1
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(("error", "code", "word"), [
    (GnimeError("a; b"), 1, "a; b"), (UsageError("a"), 2, "a"), (Stopped("stopped"), 130, "stopped"),
    (KeyboardInterrupt(), 130, "same command"), (MemoryError(), 1, "--batch-size"),
    (OSError(28, "No space left on device", "x.pt"), 1, "x.pt: No space left"),
    (RuntimeError("CUDA out of memory. Tried"), 1, "--batch-size")])
def test_exit_codes(capsys, error, code, word):
    def work():
        raise error

    assert guarded("prepare.py", work) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("prepare.py: error: ") and word in err


def test_a_fault_of_ours_stays_a_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        guarded("prepare.py", lambda: (_ for _ in ()).throw(RuntimeError("shapes")))


# --- missing data ----------------------------------------------------------------------------------------------------


def pictures(folder, n=12):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(np.full((16, 16), 20 * i, np.uint8)).save(folder / f"{i:02}.png")


def data_trouble(kind, datasets):
    """Makes the trouble, and says what the line must name."""
    if kind == "unknown target":
        return "things"
    if kind == "empty folder":
        (datasets / "things").mkdir(parents=True)
        return "things"
    if kind == "a file for a folder":
        datasets.mkdir()
        (datasets / "things").write_text("")
        return "things"
    pictures(datasets / "things/a")
    pictures(datasets / "things/b")
    if kind == "class without images":
        (datasets / "things/c").mkdir()
        (datasets / "things/c/notes.txt").write_text("")
        return "things/c"
    bad = datasets / "things/b/07.png"
    bad.write_bytes({"empty image": b"", "text for an image": b"hello", "cut image": bad.read_bytes()[:-30]}[kind])
    return "things/b/07.png"


@pytest.mark.parametrize("kind", ["unknown target", "empty folder", "a file for a folder", "class without images",
                                  "empty image", "text for an image", "cut image"])
def test_data_that_is_not_there(scripts, tmp_path, kind):
    named = data_trouble(kind, tmp_path / "datasets")
    code, line = scripts.fails("prepare", tmp_path, "--target", "things", "--image-size", "16", "--gpu", "-1", small=False)
    assert code == 1 and str(tmp_path / "datasets" / named) in line
    made = [p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "datasets" not in p.parents]
    assert all(p.name.endswith(".lock") for p in made), "nothing half-written"


def test_one_image_is_too_few(scripts, tmp_path):
    code, line = scripts.fails("prepare", tmp_path, "--limit", "1")
    assert code == 2 and "--limit 1" in line
    assert not list(tmp_path.rglob("*.hkl")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("script", ["train", "eval"])
def test_nothing_prepared(scripts, tmp_path, script):
    code, line = scripts.fails(script, tmp_path)
    assert code == 1
    assert f"python prepare.py --target digits --xai lrp --limit 60 --width 64 --root {tmp_path} --gpu -1" in line


COMMANDS = [["--target", "digits"],
            ["--target", "my faces", "--image-size", "32", "--xai", "grad", "--official", "--seed", "4"],
            ["--official", "order", "gradcam", "--xai", "gradcam"],
            ["--target", "mnist", "--limit", "500", "--width", "128", "--root", "a b", "--datasets", "$c", "--gpu", "-1"]]


@pytest.mark.parametrize("flags", COMMANDS)
@pytest.mark.parametrize("other", SCRIPTS)
def test_the_named_command_asks_for_the_same_data(flags, other):
    run = resolve("prepare", flags)
    python, script, *arguments = shlex.split(run.command(other))
    assert (python, script) == ("python", f"{other}.py")
    again = resolve(other, arguments)
    for name in ("target", "xai", "root", "datasets", "seed", "limit", "official", "gpu"):
        assert getattr(again, name) == getattr(run, name)


# --- damaged and foreign artifacts -----------------------------------------------------------------------------------

ARTIFACTS = ["aux/digits_imgs.hkl", "aux/digits_labels.hkl", "aux/digits_lrp.hkl", "models/victim/digits.pt",
             "models/eval/digits.pt", "models/def/digits_lrp/injector.pt", "models/inv/digits_predmi.pt",
             "models/inv/digits_gnime_lrp.pt"]


class Mine:
    """What a hostile file would have the reader do."""

    def __reduce__(self):
        return print, ("code ran",)


def damage(path, kind):
    whole = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif kind == "changed":  # one bit, in the middle of the numbers
        middle = len(whole) // 2
        if path.suffix == ".hkl":
            with h5py.File(path) as file:
                middle = file["data"].id.get_offset() + file["data"].nbytes // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :])
    elif kind == "text":
        path.write_text("not an artifact\n")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Mine()))
    elif kind == "code":
        buffer = io.BytesIO()
        torch.save({"tensors": Mine()}, buffer)
        path.write_bytes(buffer.getvalue())
    elif path.suffix == ".pt":  # foreign: somebody's, of other shapes
        torch.save({"layer.weight": torch.zeros(3, 3)}, path)
    else:
        hickle.dump(np.zeros((7, 3)), path, mode="w")


@pytest.mark.parametrize("kind", ["empty", "cut", "changed", "text", "pickle", "code", "foreign"])
@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_a_damaged_or_foreign_artifact(scripts, root_copy, artifact, kind):
    damage(root_copy / artifact, kind)
    before = contents(root_copy)
    code, out, lines = scripts("eval", root_copy)
    assert code == 1 and len(lines) == 1, lines
    assert artifact in lines[0] and any(word in lines[0] for word in (" away", "does not fit", "save its", "convert"))
    assert "code ran" not in out
    assert contents(root_copy) == before, "nothing written, nothing left over"


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_script(scripts, tmp_path, monkeypatch):
    original = experiment.cross_entropy

    def loss(network, batch):
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(experiment, "cross_entropy", original)
        return original(network, batch)

    monkeypatch.setattr(experiment, "cross_entropy", loss)
    code, _, lines = scripts("prepare", tmp_path, "--batch-size", "30")
    assert code == 130 and "stopped after epoch 1; the same command goes on" in lines[-1]
    assert (tmp_path / "models/victim/digits.state.pt").exists() and not (tmp_path / "models/victim/digits.pt").exists()
    code, line = scripts.fails("prepare", tmp_path)
    assert code == 1 and "digits.state.pt: made with batch 30, this run has batch " in line, "it was started with other flags"
    code, out, _ = scripts("prepare", tmp_path, "--batch-size", "30")
    assert code == 0 and "goes on from epoch 1" in out
    assert load_checkpoint(tmp_path / "models/victim/digits.pt").extra["stage"][0] == 30


def test_networks_too_narrow_for_their_images_are_refused(scripts, tmp_path):
    code, line = scripts.fails("train", tmp_path, "--target", "celeba", "--width", 64, small=False)
    assert code == 2 and "argument --width: 64: images of side 128 need at least 128" in line
