"""`python -m stress`: kills, damage, strangers' files and bad pictures; prints a table, writes stress/results.json.

The long form also puts the table into docs/reliability.md; QUICK=1 makes it shorter. Every attempt runs in a process of
its own, forked after the imports.
"""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from gnime import arrays, pipeline, resuming  # noqa: F401  imported here, so that no attempt has to
from gnime.checkpoints import load_checkpoint
from gnime.cli import main
from gnime.errors import GnimeError
from gnime.report import figures  # noqa: F401  imported here, so that no attempt has to
from gnime.sources import decode
from gnime.system import provenance
from gnime.words import counted

from . import malice
from .child import attempt, mutate, write_over

QUICK = bool(os.environ.get("QUICK"))
KILLS = 8 if QUICK else 30  # for each script
MUTATIONS = 40 if QUICK else 200  # for each kind of artifact
SCRIPTS = ("prepare", "train", "eval")
FLAGS = ["--target", "digits", "--limit", "200", "--width", "64", "--epochs", "4", "--gpu", "-1"]
KINDS = {
    "images": "aux/digits_imgs.hkl", "labels": "aux/digits_labels.hkl", "explanations": "aux/digits_lrp.hkl",
    "victim": "models/victim/digits.pt", "evaluation classifier": "models/eval/digits.pt",
    "injector": "models/def/digits_lrp/injector.pt", "inverter": "models/inv/digits_expmi_lrp.pt",
    "training state": "models/def/digits_lrp/injector.state.pt",
}


def script(name: str, root: Path, *more: str) -> int:
    resuming.SAVE_EVERY = 0.0  # every epoch: a kill then lands between savings as well as inside them
    torch.set_num_threads(1)
    return main(name, [*FLAGS, "--root", str(root), *more])


def fingerprint(root: Path) -> dict:
    """What a root holds, without durations and hardware: tensors, rows, numbers."""
    found = {}
    for path in sorted([*root.rglob("*.pt"), *root.rglob("*.hkl")]):
        name = str(path.relative_to(root))
        found[name] = load_checkpoint(path).digest if path.suffix == ".pt" else arrays.load(path).digest
    for path in root.rglob("results.json"):
        found["results"] = json.loads(path.read_text())["settings"]
    return found


def kills(folder: Path, rng: random.Random) -> dict:
    """Each script killed again and again, and started again until it ends; then everything must be as if undisturbed."""
    calm, torn = folder / "calm", folder / "torn"
    counts = {}
    for name in SCRIPTS:
        before = folder / "before"
        shutil.copytree(calm, before, dirs_exist_ok=True) if calm.exists() else before.mkdir()
        end = attempt(lambda: script(name, calm))  # noqa: B023  run at once
        assert end.code == 0, end.printed
        wanted, killed, rounds = fingerprint(calm), 0, 0
        while killed < KILLS:
            shutil.rmtree(torn, ignore_errors=True)
            shutil.copytree(before, torn)
            for _ in range(5):  # a few kills in a row, then let it end
                shot = attempt(lambda: script(name, torn), kill_after=rng.uniform(0, end.seconds))  # noqa: B023
                killed += shot.signal == 9
                if shot.code == 0:
                    break
                assert shot.signal == 9, shot.printed
            last = attempt(lambda: script(name, torn))  # noqa: B023
            assert last.code == 0, last.printed
            assert fingerprint(torn) == wanted, f"{name}: not what an undisturbed run leaves"
            assert not list(torn.rglob("*.part")), "leftovers"
            rounds += 1
        counts[name] = {"kills": killed, "runs compared": rounds}
        print(f"{name}: {killed} kills survived, {rounds} runs equal to an undisturbed one", flush=True)
        shutil.rmtree(before)
    return counts


def content(path: Path) -> object:
    """What the software would use of an artifact; raises GnimeError where it refuses."""
    if path.suffix == ".hkl":
        loaded = arrays.load(path)
        return loaded.digest, loaded.rows.tobytes(), loaded.record
    found = load_checkpoint(path)
    return found.digest, found.made_by, found.extra


def verdict(path: Path, original: bytes) -> int:
    """0 harmless: the same content is read; 1 refused; 3 accepted though it differs."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            same = repr(content(path)).encode() == original
        except GnimeError as error:
            return 1 if "\n" not in str(error) and path.name in str(error) else 4
    return 0 if same else 3


def damage(folder: Path, rng: random.Random) -> dict:
    """Every kind of artifact, damaged in many ways and read by what reads it in a run."""
    counts = {}
    victim = folder / "damaged"
    for kind, name in KINDS.items():
        source = folder / "calm" / name
        victim.mkdir(exist_ok=True)
        data, path = source.read_bytes(), victim / source.name
        original = repr(content(source)).encode()
        tally = {"tried": 0, "refused": 0, "harmless": 0, "wrongly accepted": 0, "crashed": 0}
        for _ in range(MUTATIONS):
            what, damaged = mutate(data, rng)
            write_over(path, damaged)
            end = attempt(lambda: verdict(path, original))  # noqa: B023
            tally["tried"] += 1
            outcome = {0: "harmless", 1: "refused", 3: "wrongly accepted"}.get(end.code, "crashed")
            tally[outcome] += 1
            if outcome in ("wrongly accepted", "crashed"):
                print(f"{kind}: {what}: {outcome} {end.signal} {end.printed[-500:]}", flush=True)
        counts[kind] = tally
        print(f"{kind}: {tally}", flush=True)
        shutil.rmtree(victim)
    return counts


def swaps(folder: Path) -> dict:
    """Whole artifacts of another run put in place of this run's: seed, size, explainer."""
    tally = {"tried": 0, "refused": 0, "wrongly accepted": 0}
    for flags in (["--seed", "1"], ["--width", "128"], ["--xai", "grad"]):
        other = folder / "other"
        for name in SCRIPTS:
            end = attempt(lambda: script(name, other, *flags))  # noqa: B023
            assert end.code == 0, end.printed
        for name in KINDS.values():
            theirs = other / name.replace("lrp", "grad") if "grad" in flags else other / name
            if not theirs.exists() or content(theirs)[0] == content(folder / "calm" / name)[0]:
                continue
            torn = folder / "torn"
            shutil.rmtree(torn, ignore_errors=True)
            shutil.copytree(folder / "calm", torn)
            shutil.copy(theirs, torn / name)
            if name.endswith("state.pt"):
                (torn / name.replace(".state", "")).unlink()
            end = attempt(lambda: 0 if all(script(s, torn) == 0 for s in SCRIPTS) else 1)  # noqa: B023
            tally["tried"] += 1
            tally["refused" if end.refused else "wrongly accepted"] += 1
            if not end.refused:
                print(f"{name} of a run with {flags}: accepted\n{end.printed[-800:]}")
        shutil.rmtree(other)
    print(f"swapped artifacts: {tally}", flush=True)
    return tally


def strangers(folder: Path) -> dict:
    """Malicious files; `mark` must not appear."""
    mark, place = folder / "mark", folder / "strange"
    place.mkdir()
    tally = {"tried": 0, "refused": 0, "executed": 0}

    def read(path: Path) -> int:
        try:
            content(path)
        except GnimeError:
            return 1
        return 0

    for path in [*malice.networks(place, mark), *malice.arrays(place, mark)]:
        mark.unlink(missing_ok=True)
        end = attempt(lambda: read(path))  # noqa: B023
        tally["tried"] += 1
        tally["refused"] += end.code == 1
        tally["executed"] += mark.exists()
        if end.code != 1:
            print(f"{path.name}: not refused ({end.code}, {end.signal}) {end.printed[-300:]}")
    print(f"strangers' files: {tally}", flush=True)
    return tally


def bad_pictures(folder: Path) -> dict:
    """Pictures of every kind: used or refused by name, as a user would expect."""
    place = folder / "pictures"
    place.mkdir()
    tally = {"tried": 0, "used": 0, "refused by name": 0, "wrong": 0}
    for path, good in malice.pictures(place):
        tally["tried"] += 1
        try:
            pixels = decode(path, 3, 16)
            used = pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
        except GnimeError as error:
            used = False
            assert path.name in str(error) and "\n" not in str(error), error
        tally["used" if used else "refused by name"] += 1
        if used != good:
            tally["wrong"] += 1
            print(f"{path.name}: {'used' if used else 'refused'}")
    print(f"pictures: {tally}", flush=True)
    return tally


def document(results: dict) -> str:
    """The table of docs/reliability.md."""
    rows = [f"| kills of {name}.py survived | {c['kills']}; {c['runs compared']} finished runs, all equal to an "
            f"undisturbed one |" for name, c in results["kills"].items()]
    rows += [f"| damaged {kind} | {t['tried']} tried, {t['refused']} refused, {t['harmless']} harmless, "
             f"{t['wrongly accepted']} wrongly accepted, {t['crashed']} crashed |" for kind, t in results["damage"].items()]
    swapped, strange, seen = results["swaps"], results["strangers"], results["pictures"]
    rows += [
        f"| artifacts of another run | {swapped['tried']} tried, {swapped['refused']} refused, "
        f"{swapped['wrongly accepted']} wrongly accepted |",
        f"| strangers' files | {strange['tried']} tried, {strange['refused']} refused, {strange['executed']} executed |",
        f"| pictures | {seen['tried']} tried, {seen['used']} used, {seen['refused by name']} refused by name, "
        f"{seen['wrong']} not as expected |",
    ]
    hardware = results["hardware"]
    return "\n".join(["| what | outcome |", "|---|---|", *rows, "",
                      f"Measured on {results['date']}, {hardware['cpu']}, {counted(hardware['cores'], 'core')}, Python "
                      f"{results['versions']['python']}, torch {results['versions']['torch']}, in {results['seconds']:.0f} s; "
                      f"seed {results['seed']}{', short form (QUICK=1)' if results['quick'] else ''}.", ""])


def write_docs(results: dict) -> None:
    """Puts the table between the marks in docs/reliability.md."""
    path = Path(__file__).parent.parent / "docs" / "reliability.md"
    before, rest = path.read_text().split("<!-- table -->\n", 1)
    after = rest.split("<!-- end -->\n", 1)[1]
    path.write_text(f"{before}<!-- table -->\n{document(results)}<!-- end -->\n{after}")


def run() -> int:
    began, seed = time.monotonic(), int(os.environ.get("SEED", 0))
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="stress") as name:
        folder = Path(name)
        results = {"kills": kills(folder, rng), "damage": damage(folder, rng), "swaps": swaps(folder),
                   "strangers": strangers(folder), "pictures": bad_pictures(folder)}
    results |= {"date": date.today().isoformat(), "seed": seed, "quick": QUICK, "seconds": time.monotonic() - began,
                **provenance("CPU, 1 thread")}
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + document(results))
    if not QUICK:
        write_docs(results)
    wrong = sum(t["wrongly accepted"] + t["crashed"] for t in results["damage"].values())
    wrong += results["swaps"]["wrongly accepted"] + results["strangers"]["executed"] + results["pictures"]["wrong"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run())
