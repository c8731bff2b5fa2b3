"""Exported defences, run by onnxruntime and by PyTorch alone, against the network in the defence's file."""

import copy
import json
import sys

import pytest
import torch
from helpers import random_defence, small_classifier

from gnime import export, formats
from gnime.checkpoints import load_checkpoint
from gnime.config import Run, target
from gnime.errors import GnimeError
from gnime.networks import build, rebuild
from gnime.paths import Paths
from gnime.registry import find_row
from gnime.store import write_text

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def answers(path, maps, logits):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"explanation": maps.numpy(), "prediction": logits.numpy()})[0])


def close(found, network, maps, logits):
    with torch.no_grad():
        expected = network(maps, logits)
    assert found.shape == expected.shape and expected.std() > 0.01
    return (found - expected).abs().max() < 1e-5


def test_the_injector_as_onnx_says_what_it_is(small_root, tmp_path, capsys):
    out = tmp_path / "new" / "gnime.onnx"
    assert export.main(["--setting", "gnime", "--root", str(small_root), str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"gnime: {out}, ")
    network = rebuild(small_root / "models/def/digits_lrp/injector.pt")
    for n in (1, 2, 70):
        maps, logits = torch.rand(n, 1, 16, 16), torch.randn(n, 10)
        assert close(answers(out, maps, logits), network, maps, logits)
    model = onnx.load(out)
    onnx.checker.check_model(model)
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["gnime"])
    results = json.loads((small_root / "figures/digits_lrp/results.json").read_text())
    row = results["settings"]["gnime"]
    assert said["setting"] == "gnime" and said["xai"] == "lrp" and said["bits"] is None
    assert said["digest"] == results["networks"]["injector"]["digest"]
    assert (said["residual_leakage"], said["interval"]) == (row["residual_leakage"], row["residual_leakage_interval"])
    assert said["attackers"] == row["attackers"] and said["best"] == row["best"]
    assert said["evaluated"] == said["commit"] == results["commit"] and said["date"].startswith("20")
    warned = [line.partition("the evaluation warns: ")[2] for line in printed.err.splitlines() if "evaluation warns" in line]
    assert warned == [line for line in results["warnings"] if line.startswith(("gnime: ", "injector: "))]
    assert said["warnings"] == results["warnings"]
    assert [path.name for path in out.parent.iterdir()] == ["gnime.onnx"]


@pytest.mark.parametrize(("kind", "suffix"), [("cond-prototypes", ".onnx"), ("cond-mean", ".pt2"), ("prototypes", ".pt2"),
                                              ("injector", ".pt2")])
def test_every_defence_in_either_format(tmp_path, monkeypatch, kind, suffix):
    network = rebuild(random_defence(tmp_path / "d.pt", kind, small_classifier()))
    example = torch.rand(3, 3, 16, 16), torch.randn(3, 5)
    content = formats.convert(network, example, suffix, {"a": 1})
    out = tmp_path / f"d{suffix}"
    out.write_bytes(content)
    for name in list(sys.modules):  # PyTorch is enough
        if name.split(".")[0] == "gnime":
            monkeypatch.setitem(sys.modules, name, None)
    said = {"gnime": ""}
    program = None if suffix == ".onnx" else torch.export.load(out, extra_files=said).module()
    assert suffix == ".onnx" or json.loads(said["gnime"]) == {"a": 1}
    for n in (1, 4, 70):
        maps, logits = torch.rand(n, 3, 16, 16), torch.randn(n, 5)
        found = answers(out, maps, logits) if program is None else program(maps, logits)
        assert close(found, network, maps, logits)


def test_a_program_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    network = rebuild(random_defence(tmp_path / "d.pt", "cond-mean", small_classifier()))
    example = torch.rand(3, 3, 16, 16), torch.randn(3, 5)
    actual = formats.run
    monkeypatch.setattr(formats, "run", lambda *given: actual(*given) + 2e-5)
    with pytest.raises(GnimeError, match="the .pt2 program computes something else: a number is off by 2"):
        formats.convert(network, example, ".pt2", {})


def test_refused_before_anything_is_written(small_root, tmp_path, monkeypatch, capsys):
    def fails(*flags, out="x.onnx"):
        before = sorted(tmp_path.rglob("*"))
        try:
            code = export.main([*flags, "--root", str(small_root), str(tmp_path / out)])
        except SystemExit as stopped:
            code = stopped.code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m gnime.export: error: ") and sorted(tmp_path.rglob("*")) == before
        return code, line.removeprefix("python -m gnime.export: error: ")

    for name in ("predmi", "expmi", "rnd", "ond", "mix-0.1", "permutation"):
        assert fails("--setting", name) == (
            2, f"--setting {name}: cannot be exported; give gnime, cond-mean, prototypes-K or cond-prototypes-K")
    assert fails("--setting", "gnime", out="x.h5") == (
        2, f"OUT {tmp_path / 'x.h5'}: give a name that ends with .onnx or .pt2")
    (tmp_path / "folder.pt2").mkdir()
    assert fails("--setting", "gnime", out="folder.pt2")[1].endswith("folder.pt2: is a folder")
    code, line = fails("--setting", "prototypes-5")
    assert code == 1 and "prototypes-5.pt is missing; make it with: python eval.py --target digits --xai lrp" in line
    known = f"--limit 60 --width 64 --root {small_root} --gpu -1"  # as the results tell
    others = " (and --datasets, --epochs, --batch-size, --lr, --precision, --attackers, where the run had them)"
    assert line.endswith(f"{known} --settings predmi expmi prototypes-5{others}")
    code, line = fails("--setting", "gnime", "--xai", "grad")
    assert code == 1 and "digits_grad/injector.pt is missing; make it with: python train.py" in line and "--weight" not in line
    assert f"--limit 60 --root {small_root} --gpu -1 (and --width, --official, --datasets" in line, "as the images tell"
    code, line = fails("--setting", "gnime@30")
    assert code == 1 and "gnime@30/injector.pt is missing; make it with: python train.py" in line
    assert line.endswith(f"{known} --weight 30{others.replace(', --attackers', '')}"), "train.py has no attackers"
    (tmp_path / "own.py").write_text("raise SystemExit  # it must not be run")
    model, lrp = (f"{tmp_path / 'own.py'}:{name}" for name in ("model", "lrp"))
    code, line = fails("--setting", "gnime", "--victim", model, "--published", "label")
    assert code == 1 and "digits_model_lrp_label/injector.pt is missing" in line
    assert f"--victim {model} " in line and "--published label" in line
    assert fails("--setting", "gnime", "--victim", "none.py:model")[0] == 2
    code, line = fails("--setting", "gnime", "--xai", lrp)
    assert code == 2 and "the name lrp is taken" in line
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
        assert fails("--setting", "gnime") == (1, "the defence cannot be converted to .onnx (division by zero)")
    with monkeypatch.context() as patch:
        patch.setattr(formats.importlib.util, "find_spec", lambda name: None)
        assert fails("--setting", "gnime")[1].startswith(".onnx: onnx, onnxscript, onnxruntime not installed; install with")
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(formats, "convert", lambda *_: b"x")
        code, line = fails("--setting", "gnime", out="file/x.onnx")
        assert code == 1 and "x.onnx: cannot be written" in line


def test_a_defence_of_another_weight_and_of_ones_own_objects_has_its_leakage(tmp_path, monkeypatch):
    """Files where the scripts put them; the flags find them, and the numbers are those of the file's digest."""
    folder = tmp_path / "models/def/digits_model_shown_probabilities/gnime@30"
    folder.mkdir(parents=True)
    digest = load_checkpoint(random_defence(folder / "injector.pt", "injector", small_classifier(), renamed="shown")).digest
    (tmp_path / "own.py").write_text("raise SystemExit  # it must not be run")
    results = tmp_path / "figures/digits_model_shown_probabilities/results.json"
    results.parent.mkdir(parents=True)
    write_text(results, json.dumps({
        "settings": {"gnime@30": {"residual_leakage": 0.25, "residual_leakage_interval": [0.2, 0.3]}}, "commit": "c",
        "warnings": [],
        "networks": {"injector": {"digest": "another"}, "gnime@30 injector": {"digest": digest}}}))
    monkeypatch.setattr(formats, "convert", lambda network, example, suffix, metadata: json.dumps(metadata).encode())
    own, out = tmp_path / "own.py", tmp_path / "x.onnx"
    assert export.main(["--setting", "gnime@30", "--victim", f"{own}:model", "--xai", f"{own}:shown", "--published",
                        "probabilities", "--root", str(tmp_path), str(out)]) == 0
    said = json.loads(out.read_text())
    assert (said["residual_leakage"], said["digest"], said["xai"]) == (0.25, digest, "shown")


def test_an_evaluation_that_says_nothing_of_the_defence_is_named(tmp_path):
    """results.json by hand: each note, and the numbers that the metadata then have."""
    run = Run("eval", target("digits"), "lrp", tmp_path, tmp_path / "datasets", gpu=-1, rows=("predmi", "gnime"))
    path, row = Paths(run).results, find_row("gnime")
    command = (f"python eval.py --target digits --xai lrp --root {tmp_path} --gpu -1 --settings predmi gnime (and --seed, "
               "--limit, --image-size, --width, --official, --datasets, --epochs, --batch-size, --lr, --precision, "
               "--attackers, where the run had them)")
    numbers = {"residual_leakage": 0.25, "residual_leakage_interval": [0.2, 0.3], "best": {"attacker": "kernel"},
               "attackers": {"kernel": {"mse": 0.1}}}
    content = {"settings": {"gnime": numbers}, "networks": {"injector": {"digest": "abc"}}, "commit": "c", "warnings": []}

    def judged(digest="abc", **changed):
        write_text(path, json.dumps(content | changed))
        leakage, notes = export.evaluation(run, row, digest)
        return leakage["residual_leakage"], leakage["interval"], [note.removeprefix(f"{path}: ") for note in notes]

    unknown = None, None
    assert export.evaluation(run, row, "abc")[1] == [
        f"{path}: gnime is not evaluated, so the leakage is not in the file; measure it with {command}"]
    path.parent.mkdir(parents=True)
    assert judged() == (0.25, [0.2, 0.3], [])
    warnings = ["rnd: x", "gnime@30: x", "gnime: y", "images: x", "gnime@30 injector: x", "injector: z"]
    said = [f"the evaluation warns: {of}" for of in ("gnime: y", "injector: z")]
    assert judged(warnings=warnings) == (0.25, [0.2, 0.3], said)
    *found, (note,) = judged("abd")
    assert (*found,) == unknown and note.startswith("older than the defence, which was made again since")
    *found, (note,) = judged(settings={})
    assert (*found,) == unknown and note.startswith("gnime is not evaluated")
    *found, (note,) = judged(settings=3)
    assert (*found,) == unknown and note.startswith("cannot be read")
    *found, (note,) = judged(settings={"gnime": {"residual_leakage": None}})
    assert (*found,) == unknown and note.startswith("residual leakage is not known: ")
    told = {"seed": 3, "limit": None, "image": [1, 16, 16], "width": 64, "official": ["order"]}
    *_, (note,) = judged(settings={}, configuration=told)
    assert "--seed 3 --width 64 " in note and "--official order --settings predmi gnime (and --datasets, --epochs, " in note
    for damaged in (told | {"seed": "x"}, told | {"official": None}, told | {"image": [1]}, {}, 3):
        *_, (note,) = judged(settings={}, configuration=damaged)
        assert "--settings predmi gnime (and --seed, --limit, " in note
    content["settings"], content["networks"] = {"cond-mean": numbers}, {"cond-mean defence": {"digest": "f"}}
    assert judged("f")[0] is None
    row = find_row("cond-mean")
    assert judged("f") == (0.25, [0.2, 0.3], [])


def test_terms_that_cancel_leave_the_same_numbers_everywhere():
    """Coefficients of 50 and -50 for neighbouring centres, whose sum is of order 1, as a regression with a small ridge has."""
    network = build({"network": "cond-mean", "shape": [1, 4, 4], "classes": 10, "centres": 400}).eval()
    network.centres.normal_(std=0.01)
    network.coefficients.copy_(50 * torch.tensor([1.0, -1.0]).repeat(200)[:, None].expand(400, 16))
    logits, twin = torch.randn(50, 10), copy.deepcopy(network).double()
    exact = twin.means.new_zeros(50, 16) + torch.exp(
        -(logits.double()[:, None] - twin.centres).square().sum(2) / 2) @ twin.coefficients
    assert exact.abs().max() > 0.1, "there is something to compare"
    network.means += 0.5  # so that nothing is cut off at 0
    found = network(None, logits).flatten(1)
    assert torch.allclose(found.double(), (exact + 0.5).clamp(0, 1), rtol=0, atol=1e-6)
    content = formats.convert(network, (torch.rand(50, 1, 4, 4), logits), ".onnx", {})
    assert (formats.run(content, ".onnx", (torch.rand(50, 1, 4, 4), logits)).flatten(1) - found).abs().max() < 1e-6
