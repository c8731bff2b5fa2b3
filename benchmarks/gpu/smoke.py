"""Every path once, each in a process of its own, all at once; and what the cells may use after that.

    python smoke.py SECONDS [CHECK ...]      the checks, within SECONDS
    python smoke.py --one CHECK              one of them, in this process
"""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import env

CHECKS = {  # name: "module:function", argument
    "nets:tf32": ("networks:check_networks", "tf32"), "nets:bf16": ("networks:check_networks", "bf16"),
    "nets:fp32": ("networks:check_networks", "fp32"), "explainers": ("networks:check_explainers",),
    "scripts:tf32": ("scripts:check_scripts", "tf32"), "scripts:bf16": ("scripts:check_scripts", "bf16"),
    "deterministic": ("scripts:check_deterministic",), "graphs": ("ways:check_graphs",), "pytest": ("scripts:check_pytest",),
    "pooling": ("pooling:check_pooling",),
    "plain:tf32": ("networks:check_networks", "tf32"), "plain:bf16": ("networks:check_networks", "bf16"),
}
GPU_ONLY = {"nets:tf32", "scripts:tf32", "graphs", "pooling", "plain:tf32", "plain:bf16"}


def _file(name: str) -> Path:
    return env.WORK / "smoke" / f"{name.replace(':', '_')}.json"


def check(name: str) -> None:
    """Runs one check in this process, and leaves its outcome in a file."""
    from importlib import import_module

    began = time.time()
    function, *arguments = CHECKS[name]
    try:
        module, attribute = function.split(":")
        outcome = {"ok": True, "found": getattr(import_module(module), attribute)(*arguments)}
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"[:1500]
        outcome = {"ok": False, "error": text, "trace": traceback.format_exc()[-2500:]}
    outcome["seconds"] = round(time.time() - began, 1)
    _file(name).write_text(json.dumps(outcome, default=str))


def start(name: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PLAIN": "1" if name.startswith("plain") else "0"}
    errors = _file(name).with_suffix(".err").open("w")
    command = [sys.executable, __file__, "--one", name]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def run(seconds: float, names: list[str]) -> dict[str, dict]:
    """The outcome of each check. "ok" is None for one that was late: that is no failure."""
    _file("").parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        _file(name).unlink(missing_ok=True)
    children, end = {name: start(name) for name in names}, min(time.time() + seconds, env.DEADLINE)
    outcomes = {}
    for name, child in children.items():
        try:
            child.wait(timeout=max(0.1, end - time.time()))
            outcomes[name] = {"ok": False, "error": f"ended with code {child.returncode}"}
        except subprocess.TimeoutExpired:
            child.kill()
            outcomes[name] = {"ok": None, "error": f"not done in {seconds:.0f} s"}
        if _file(name).exists():
            outcomes[name] = json.loads(_file(name).read_text())
    return outcomes


def decide(outcomes: dict[str, dict], gpu: bool) -> dict:
    """What the cells use. "precisions", the best first: tf32 and bf16 where they passed. "plain": whether they passed with the
    plain networks alone. fp32 where nothing else works."""
    def ok(name: str) -> bool | None:
        return outcomes.get(name, {}).get("ok")

    both = ["tf32", "bf16"] if gpu else []
    sound = [p for p in both if ok(f"nets:{p}") is not False]
    if sound:
        return {"precisions": sorted(sound, key=lambda p: ok(f"scripts:{p}") is False), "plain": False}
    plainly = [p for p in both if ok(f"plain:{p}")]
    return {"precisions": plainly or ["fp32"], "plain": bool(plainly)}


def main(seconds: float, names: list[str]) -> None:
    names = names or [name for name in CHECKS if env.on_gpu() or name not in GPU_ONLY]
    outcomes = run(seconds, names)
    decided = decide(outcomes, env.on_gpu())
    env.DECIDED.write_text(json.dumps(decided))
    env.put("smoke.json", {"decided": decided, "checks": outcomes})
    for name, outcome in outcomes.items():
        verdict = {True: "pass", False: "FAIL", None: "late"}[outcome["ok"]]
        env.log(f"{name:<16}", verdict, f"{outcome.get('seconds', '-')} s", outcome.get("error", "")[:300])
    env.log("decided", decided)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        check(sys.argv[2])
    else:
        main(float(sys.argv[1]), sys.argv[2:])
