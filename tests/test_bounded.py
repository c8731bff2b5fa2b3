"""Defences whose leak is bounded, through the scripts: fitted, saved, found again, refused."""

import json
import math
import shutil

import hickle
import numpy as np
import pytest
import torch
from bounded import DEVICE

from gnime.checkpoints import load_checkpoint
from gnime.defences import DefenderData, cond_mean
from gnime.defences.class_mean import class_means
from gnime.networks import rebuild

BOUNDED = ["cond-mean", "prototypes-3", "cond-prototypes-2"]


def files(root, name):
    return root / f"models/def/digits_lrp/{name}.pt"


@pytest.mark.usefixtures("no_pictures")
def test_fitted_saved_and_found_again(scripts, root_copy, capsys):
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "expmi", *BOUNDED, "mix-0.1")
    assert code == 0 and out.count("fitted in") == 3
    assert "prototypes-3: at most 1.59 bits beyond the prediction" in out
    assert "cond-mean: at most 0 bits" in out and "mix-0.1: at most" not in out
    found = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())
    bits = {name: row["bits"] for name, row in found["settings"].items()}
    assert bits == {"predmi": None, "expmi": None, "cond-mean": 0, "prototypes-3": math.log2(3), "cond-prototypes-2": 1,
                    "mix-0.1": None}
    before = {name: files(root_copy, name).read_bytes() for name in BOUNDED}
    assert found["networks"]["prototypes-3 defence"]["digest"] == load_checkpoint(files(root_copy, "prototypes-3")).digest

    # what the attackers saw, from the files alone
    images, maps = (hickle.load(root_copy / f"aux/digits_{what}.hkl") for what in ("imgs", "lrp"))
    clean = torch.from_numpy(np.asarray(maps))
    with torch.no_grad():
        logits = rebuild(root_copy / "models/victim/digits.pt")(torch.from_numpy(images.astype(np.float32) / 255))
        for name in BOUNDED:
            distortion = (rebuild(files(root_copy, name))(clean, logits) - clean)[54:].square().mean().item()
            assert found["settings"][name]["distortion"] == pytest.approx(distortion, rel=1e-4)
    rows = range(30)
    data = DefenderData(clean, logits, rows, class_means(clean, logits, rows, DEVICE), 0, DEVICE)
    kept = rebuild(files(root_copy, "cond-mean")).state_dict()
    for name, tensor in cond_mean.fit(data).tensors.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-4, rtol=1e-4, check_dtype=False)

    capsys.readouterr()
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "expmi", *BOUNDED, "mix-0.1")
    assert code == 0 and "fitted in" not in out and out.count("/cond-mean.pt: found") == 1
    assert {name: files(root_copy, name).read_bytes() for name in BOUNDED} == before
    again = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())
    assert again["settings"] == found["settings"]


@pytest.mark.usefixtures("no_pictures")
def test_classes_too_small_are_said_before_an_attacker_is_trained_and_each_time(root_copy, capsys):
    flags = ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--epochs", "1", "--root", str(root_copy)]
    from gnime.cli import main

    shutil.rmtree(root_copy / "models/inv")
    for _ in range(2):
        capsys.readouterr()
        assert main("eval", [*flags, "--settings", "prototypes-3"]) == 0
        warned = [line for line in capsys.readouterr().err.splitlines() if "prototypes" in line]
        assert len(warned) == 1 and warned[0].startswith("warning: prototypes-3: ") and "fewer than 15" in warned[0]


@pytest.mark.usefixtures("no_pictures")
def test_a_defence_of_something_else_is_refused(scripts, root_copy):
    assert scripts("eval", root_copy, "--settings", "prototypes-3", "cond-mean")[0] == 0
    shutil.copy(files(root_copy, "prototypes-3"), files(root_copy, "prototypes-2"))
    code, line = scripts.fails("eval", root_copy, "--settings", "prototypes-2")
    assert code == 1 and "prototypes-2.pt: made with definition parameters clusters 3, this run" in line
    shutil.copy(files(root_copy, "injector"), files(root_copy, "prototypes-5"))
    code, line = scripts.fails("eval", root_copy, "--settings", "prototypes-5")
    assert code == 1 and "prototypes-5.pt: made with kind injector, this run has defence" in line
    torch.save(rebuild(files(root_copy, "cond-mean")).state_dict(), files(root_copy, "cond-prototypes-2"))
    code, line = scripts.fails("eval", root_copy, "--settings", "cond-prototypes-2")
    assert code == 1 and "cond-prototypes-2.pt: does not say what made it; move it away" in line

    content = files(root_copy, "prototypes-3").read_bytes()
    middle = len(content) // 2
    files(root_copy, "prototypes-3").write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
    code, line = scripts.fails("eval", root_copy, "--settings", "prototypes-3")
    assert code == 1 and "prototypes-3.pt" in line and "move it away" in line

    other = torch.load(files(root_copy, "cond-mean"), weights_only=True)
    from gnime.checkpoints import save_checkpoint

    other["tensors"]["means"] += 0.01  # fitted anew, to something else
    save_checkpoint(files(root_copy, "cond-mean"), other["tensors"], other["spec"], other["made_by"], other["extra"])
    code, line = scripts.fails("eval", root_copy, "--settings", "cond-mean")
    assert code == 1 and "digits_cond-mean_lrp.pt: made with defence" in line and "the defence changed since" in line


@pytest.mark.usefixtures("no_pictures")
def test_other_explanations_refuse_a_fitted_defence(scripts, root_copy):
    assert scripts("eval", root_copy, "--settings", "cond-mean")[0] == 0
    path = root_copy / "aux/digits_lrp.hkl"
    maps = np.array(hickle.load(path))
    maps[0] = 0
    hickle.dump(maps, path, mode="w")
    code, line = scripts.fails("eval", root_copy, "--settings", "cond-mean")
    assert code == 1 and "cond-mean.pt: made with explanations" in line
