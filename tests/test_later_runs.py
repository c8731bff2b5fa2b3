"""Scripts that go on where others stopped, and what they say of networks that were there."""

import shutil

import hickle
import pytest
import torch
from conftest import Scripts
from helpers import Killed
from root_files import SPLITS, Files, results

from gnime import experiment, pipeline, resuming, training
from gnime.checkpoints import load_checkpoint, save_checkpoint
from gnime.cli import main, resolve
from gnime.config import target

# --- stopped and continued -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_killed_in_an_inverter_the_evaluation_ends_with_the_same_numbers(scripts, small_root, root_copy, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    shutil.rmtree(root_copy / "models/inv")
    shutil.rmtree(root_copy / "figures")
    steps, note = iter(range(1, 100)), training._note_finite

    def counted(*arguments):
        if next(steps) == 6:  # one step an epoch, two epochs an inverter: the third inverter's second epoch
            raise Killed
        return note(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_note_finite", counted)
        with pytest.raises(Killed):
            scripts("eval", root_copy)
    there = {p.name for p in (root_copy / "models/inv").glob("*.pt")}
    assert {"digits_predmi.pt", "digits_expmi_lrp.pt", "digits_rnd_lrp.state.pt"} <= there
    assert "digits_rnd_lrp.pt" not in there and not (root_copy / "figures/digits_lrp/results.json").exists()
    code, out, _ = scripts("eval", root_copy)
    assert code == 0 and out.count("goes on from epoch 1") == 1 and "digits_predmi.pt: found" in out
    assert results(root_copy)["settings"] == results(small_root)["settings"]
    assert not list(root_copy.rglob("*.part"))


@pytest.mark.usefixtures("no_pictures")
def test_more_epochs_later_are_as_many_at_once(scripts, root_copy, tmp_path):
    """2 + 2 = 4 through the scripts, bit for bit, for the injector and for an inverter."""
    again = shutil.copytree(root_copy, tmp_path / "again")
    shutil.rmtree(again / "models/def")
    shutil.rmtree(again / "models/inv")
    for root in (root_copy, again):
        assert scripts("train", root, "--epochs", 4)[0] == 0
    for setting in ("rnd", "gnime"):  # their attackers saw what another injector sent, or noise of its size
        code, line = scripts.fails("eval", root_copy, "--settings", setting)
        assert code == 1 and f"digits_{setting}_lrp.pt: made with injector" in line
        for left in (root_copy / "models/inv").glob(f"digits_{setting}_lrp*.pt"):
            left.unlink()
    for root in (root_copy, again):
        assert scripts("eval", root, "--epochs", 4, "--settings", "expmi", "gnime")[0] == 0
    for name in ("def/digits_lrp/injector", "inv/digits_expmi_lrp"):
        one, other = (load_checkpoint(root / f"models/{name}.pt") for root in (root_copy, again))
        assert one.extra["epochs"] == 4 and one.digest == other.digest
    assert results(root_copy)["settings"] == results(again)["settings"]


# --- what a result says of itself ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_results_tell_how_networks_were_trained_whatever_the_last_flags(scripts, root_copy):
    shutil.rmtree(root_copy / "models/def")
    assert scripts("train", root_copy, "--weight", 7, "--batch-size", 16)[0] == 0
    shutil.rmtree(root_copy / "models/inv")
    code, line = scripts.fails("eval", root_copy, "--settings", "expmi", "gnime")  # which is the target's own weight
    assert code == 1 and "digits_lrp/injector.pt is missing; make it with: python train.py" in line
    code, line = scripts.fails("eval", root_copy, "--settings", "gnime@8", "rnd")
    assert code == 1 and "digits_lrp/gnime@8/injector.pt is missing" in line and line.endswith("--weight 8 300")
    assert scripts("eval", root_copy, "--batch-size", 8, "--settings", "expmi", "gnime@7")[0] == 0
    found = results(root_copy)
    assert found["networks"]["gnime@7 injector"]["weight"] == 7 and found["configuration"]["weight"] == 300, "the target's own"
    stages = found["configuration"]["stages"]
    assert [stages["injector"][key] for key in ("epochs", "batch_size")] == [2, 16]
    assert stages["classifier"]["epochs"] == 2 and found["networks"]["gnime@7"]["stage"][0] == 8
    assert found["command"].endswith("--epochs 2 --batch-size 8 --settings expmi gnime@7")
    assert found["commands"][1].endswith("--weight 7")


@pytest.mark.usefixtures("no_pictures")
def test_attackers_of_another_precision_are_refused_and_of_another_ond_trained_anew(scripts, root_copy):
    code, line = scripts.fails("eval", root_copy, "--precision", "bf16", "--settings", "expmi")
    assert code == 1 and "made with precision fp32, this run has bf16" in line
    assert scripts("eval", root_copy, "--settings", "ond")[0] == 0
    code, out, _ = scripts("eval", root_copy, "--settings", "ond", "--epochs", 4)  # the frozen inverter goes on
    assert code == 0 and "digits_ond_lrp.pt: trained for 2 epochs, this run asks for 4; it is trained anew" in out
    again = root_copy.parent / "again"
    shutil.copytree(root_copy, again)
    shutil.rmtree(again / "models/inv")
    assert scripts("eval", again, "--settings", "ond", "--epochs", 4)[0] == 0
    assert results(root_copy)["settings"]["ond"]["mse"] == results(again)["settings"]["ond"]["mse"]
    path = root_copy / "models/inv/digits_ond-defender_lrp.pt"
    other = load_checkpoint(path)
    tensors = {name: value + 0.001 for name, value in other.tensors.items()}
    save_checkpoint(path, tensors, other.spec, other.made_by, other.extra)
    code, out, _ = scripts("eval", root_copy, "--settings", "ond", "--epochs", 4)
    assert code == 0 and "digits_ond_lrp.pt: made with another network of ond-defender; it is trained anew" in out


@pytest.mark.usefixtures("no_pictures")
def test_a_shared_predmi_is_trained_anew_for_other_epochs_or_batches(scripts, small_root, root_copy):
    """Another explainer trained it for longer: the table of this command stays the same."""
    assert scripts("prepare", root_copy, "--xai", "grad")[0] == 0
    assert scripts("eval", root_copy, "--xai", "grad", "--settings", "predmi", "--epochs", 4)[0] == 0
    assert results(root_copy, "grad")["settings"] != results(small_root)["settings"]
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi")
    assert code == 0 and "trained for 4 epochs, this run asks for 2; it is trained anew" in out
    assert "2 epochs, best validation MSE, before clipping, 0." in out
    assert results(root_copy)["settings"]["predmi"]["mse"] == results(small_root)["settings"]["predmi"]["mse"]
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "--batch-size", 5)
    again = f"trained with batch {target('digits').inverter.batch_size}, this run has batch 5; it is trained anew"
    assert code == 0 and again in out and results(root_copy)["networks"]["predmi"]["stage"][0] == 5


BATTERY = ["--settings", "predmi", "expmi", "ond", "gnime", "--attackers", "predmi", "expmi", "unet"]


def epochs_of(root):
    names = "predmi", "expmi_lrp", "gnime_lrp", "ond_lrp", "ond-defender_lrp", "expmi_lrp_unet"
    return {name: epochs_of_one(root, name) for name in names}


def epochs_of_one(root, name):
    return load_checkpoint(root / f"models/inv/digits_{name}.pt").extra["epochs"]


@pytest.mark.usefixtures("no_pictures")
def test_every_attacker_has_the_epochs_that_are_asked_for(scripts, root_copy):
    """Fewer than it had: it is trained anew, as in a root where there was none."""
    assert scripts("eval", root_copy, *BATTERY)[0] == 0
    fewer = results(root_copy)["settings"]
    shutil.rmtree(root_copy / "models/inv")
    assert scripts("eval", root_copy, *BATTERY, "--epochs", 4)[0] == 0 and set(epochs_of(root_copy).values()) == {4}
    code, out, _ = scripts("eval", root_copy, *BATTERY)
    told = [line for line in out.splitlines() if "trained for 4 epochs, this run asks for 2; it is trained anew" in line]
    assert code == 0 and len(told) == 9, "two attackers a row, of PredMI's row the same network as everywhere, and OND's own"
    assert set(epochs_of(root_copy).values()) == {2} and results(root_copy)["settings"] == fewer
    code, out, _ = scripts("eval", root_copy, *BATTERY)
    assert code == 0 and "it is trained anew" not in out and "training," not in out, "a finished run trains nothing again"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("flags", [["--batch-size", 5], ["--lr", 0.01]])
def test_every_attacker_has_the_batch_and_the_rate_that_are_asked_for(scripts, root_copy, flags):
    rows = ["--settings", "predmi", "expmi", "gnime", *flags]
    code, out, _ = scripts("eval", root_copy, *rows)
    assert code == 0 and out.count("it is trained anew") == 3
    assert len({str(results(root_copy)["networks"][name]["stage"]) for name in ("predmi", "expmi", "gnime")}) == 1
    code, out, _ = scripts("eval", root_copy, *rows)
    assert code == 0 and "it is trained anew" not in out


@pytest.mark.usefixtures("no_pictures")
def test_more_epochs_without_a_state_are_trained_anew(scripts, root_copy):
    (root_copy / "models/inv/digits_expmi_lrp.state.pt").unlink()
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "expmi", "--epochs", 3)
    assert code == 0 and out.count("it is trained anew") == 1 and out.count("goes on from epoch 2") == 1
    assert "digits_expmi_lrp.pt: trained for 2 epochs, this run asks for 3" in out
    assert [epochs_of_one(root_copy, name) for name in ("predmi", "expmi_lrp")] == [3, 3]


@pytest.mark.usefixtures("no_pictures")
def test_a_training_anew_that_is_stopped_goes_on(scripts, root_copy, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    rows = ["--settings", "predmi", "--epochs"]
    assert scripts("eval", root_copy, *rows, 6)[0] == 0
    steps, note = iter(range(1, 100)), training._note_finite

    def counted(*arguments):
        if next(steps) == 3:  # one step an epoch
            raise Killed
        return note(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_note_finite", counted)
        with pytest.raises(Killed):
            scripts("eval", root_copy, *rows, 4)
    assert epochs_of_one(root_copy, "predmi") == 6, "the file is replaced by a whole one"
    code, out, _ = scripts("eval", root_copy, *rows, 4)
    assert code == 0 and "it is trained anew" in out and "goes on from epoch 2" in out
    assert epochs_of_one(root_copy, "predmi") == 4


@pytest.mark.usefixtures("no_pictures")
def test_an_attacker_that_stopped_early_is_found(scripts, root_copy, monkeypatch):
    scores = iter([1.0 + i for i in range(100)])  # ever worse
    monkeypatch.setattr(training, "_validate", lambda *_: next(scores))
    shutil.rmtree(root_copy / "models/inv")
    rows = ["--settings", "predmi", "--epochs", 40]
    assert scripts("eval", root_copy, *rows)[0] == 0 and epochs_of_one(root_copy, "predmi") == 11
    code, out, _ = scripts("eval", root_copy, *rows)
    assert code == 0 and "digits_predmi.pt: found, 11 epochs" in out


def test_a_file_of_another_kind_is_not_trained_anew(scripts, root_copy):
    path = root_copy / "models/inv/digits_expmi_lrp.pt"
    shutil.copy(root_copy / "models/eval/digits.pt", path)
    before = path.read_bytes()
    code, line = scripts.fails("eval", root_copy, "--settings", "expmi", "--epochs", 1)
    assert code == 1 and "digits_expmi_lrp.pt: made with kind evaluation" in line and path.read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_an_injector_of_more_epochs_is_used_and_the_advice_trains_it_anew(scripts, root_copy, capsys):
    injector = root_copy / "models/def/digits_lrp/injector.pt"
    state = injector.with_name("injector.state.pt")
    capsys.readouterr()
    assert main("train", [*Scripts.flags, "--root", str(root_copy), "--epochs", "1"]) == 0
    warned = capsys.readouterr().err
    assert "trained for 2 epochs, this run asks for 1: it is used as it is" in warned
    assert f"move {injector} and {state} away" in warned
    injector.rename(injector.with_suffix(".old"))
    code, line = scripts.fails("train", root_copy, "--epochs", 1)
    assert code == 1 and f"{state}: has 2 finished epochs, this run asks for 1; give --epochs 2 or more" in line
    state.rename(state.with_suffix(".old"))
    assert scripts("train", root_copy, "--epochs", 1)[0] == 0
    assert load_checkpoint(injector).extra["epochs"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_results_tell_how_each_classifier_was_trained(scripts, tmp_path):
    assert scripts("prepare", tmp_path, "--epochs", 4)[0] == 0
    for file in (tmp_path / "models/eval").glob("*.pt"):
        file.unlink()
    assert scripts("prepare", tmp_path)[0] == scripts("eval", tmp_path, "--settings", "predmi")[0] == 0
    stages = results(tmp_path)["configuration"]["stages"]
    assert {name: stage["epochs"] for name, stage in stages.items() if name != "injector"} == {
        "classifier": 4, "evaluation classifier": 2, "inverter": 2}


@pytest.mark.usefixtures("no_pictures")
def test_the_precision_of_every_network_is_told(scripts, root_copy):
    _, out, _ = scripts("eval", root_copy)
    found = [line for line in out.splitlines() if ".pt: found" in line]
    assert {line.split()[0] for line in found} == {"victim", "evaluation", "injector", "predmi", "expmi", "rnd", "gnime"}
    assert all(line.endswith("2 epochs, fp32") for line in found)
    assert {network["precision"] for network in results(root_copy)["networks"].values()} == {"fp32"}


def test_fewer_epochs_than_asked_for_are_said(scripts, root_copy, capsys):
    assert scripts("prepare", root_copy)[0] == 0
    assert main_warns(root_copy, capsys, 2) == []
    warned = main_warns(root_copy, capsys, 9)
    assert len(warned) == 2 and all("trained for 2 epochs, this run asks for 9" in line for line in warned)
    assert "victim/digits.pt and " in warned[0] and "victim/digits.state.pt and what was made with it away" in warned[0]


def main_warns(root, capsys, epochs):
    capsys.readouterr()
    flags = ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--root", str(root)]
    assert main("prepare", [*flags, "--epochs", str(epochs)]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning:") and "near chance" not in line]


def test_the_accuracy_of_somebody_elses_victim_is_told(root_copy, capsys):
    """Its outputs are another program's classes: those of ours in another order."""
    path = root_copy / "models/victim/digits.pt"
    tensors, score = load_checkpoint(path).tensors, load_checkpoint(path).extra["score"]
    run = resolve("prepare", [*Scripts.flags, "--root", str(root_copy)])
    pipeline._tell_victim(experiment.Experiment(run))
    assert f"accuracy {score:.3f} on the attacker's half, chance 0." in capsys.readouterr().out
    last = [name for name in tensors if tensors[name].shape[0] == 10]
    files = Files(root_copy)
    images, labels, _, _ = files.of(SPLITS.attacker)
    with torch.no_grad():
        said = (files.victim(images).argmax(1) + 1) % 10
    torch.save({name: value.roll(1, 0) if name in last else value for name, value in tensors.items()}, path)
    (warning,) = pipeline._tell_victim(experiment.Experiment(run))
    out = capsys.readouterr().out
    assert f"accuracy {(said == labels).double().mean():.3f} on" in out
    assert warning.startswith("models/victim/digits.pt: ") and "sort them: 0: 0, 1: 1, 2: 2" in warning


@pytest.mark.parametrize("label", [-1, 10**7])
def test_strangers_labels_are_looked_at(scripts, root_copy, label):
    labels = hickle.load(root_copy / "aux/digits_labels.hkl")
    labels[3] = label
    hickle.dump(labels, root_copy / "aux/digits_labels.hkl")
    code, line = scripts.fails("train", root_copy)
    assert code == 1 and "digits_labels.hkl: labels from" in line
