"""Runs that are killed at random moments and gone on with, against runs that were not.

    python benchmarks/kill.py --rounds 50 --seed 0

Each round kills a run with SIGKILL, once or more, goes on with it and compares: the record cell for cell, all
weights and outcomes bit for bit. It ends with 1 if any differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from advbench.cli.main import invoke
from leaderboards import comparable, read_record

COMMON = ["--sequence", "fgsm,pgd:steps=2", "--unseen", "none", "--epochs", "2", "--points", "20"]
COMMON += ["--set", "pretrain.epochs=1", "--set", "batch_size=256", "--threads", "1", "--device", "cpu"]
VARIANTS = {
    "air": ["--defense", "air"],
    "joint, adam": ["--defense", "joint", "--set", "optimizer=adam"],
    "val-robust": ["--defense", "at", "--select", "val-robust"],
}
MOST_KILLS = 3
WRITES = 40
"""About as many files as a run replaces."""


def start(command: list[str], log: Path, die_after: int | None = None) -> int:
    """A child that runs the command; it may kill itself while it writes its n-th file."""
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if die_after is not None:
        replace, left = os.replace, die_after

        def dying(source: str, target: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = dying  # type: ignore[assignment]
    code = 1
    try:
        code = invoke(command)
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit code; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def complete(runs_dir: Path) -> list[Path]:
    """The finished runs."""
    return sorted(path.parent for path in runs_dir.glob("*/record.json"))


def command_for(variant: str, runs_dir: Path, named: bool) -> list[str]:
    """The command, or the one that goes on with the run that is there."""
    unfinished = sorted(path.parent for path in runs_dir.glob("*/run.json"))
    if named and unfinished:
        return ["run", "--resume", str(unfinished[0])]
    return ["run", *COMMON, *VARIANTS[variant], "--runs-dir", str(runs_dir)]


def kill_once(command: list[str], log: Path, draws: random.Random, at: str, seconds: float) -> bool:
    """Start the command and kill it; False where it was faster."""
    if at == "writes":
        return wait(start(command, log, draws.randrange(1, WRITES))) == -signal.SIGKILL
    child = start(command, log)
    time.sleep(draws.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def differences(first: Path, second: Path) -> list[str]:
    """What two finished runs disagree on."""
    found = [] if comparable(read_record(first)) == comparable(read_record(second)) else ["record"]
    names = sorted(str(path.relative_to(second)) for path in second.rglob("*.safetensors"))
    for name in [*names, "outcomes.npz"]:
        if not (first / name).exists() or (first / name).read_bytes() != (second / name).read_bytes():
            found.append(name)
    return found + [name for name in ("checkpoint", ".lock") if (first / name).exists()]


def main() -> int:
    """Print a line a round, then the sum; 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", choices=("time", "writes"), default="time", help="what is drawn")
    given = parser.parse_args()
    draws = random.Random(given.seed)
    place = Path(tempfile.mkdtemp(prefix="advbench-kill-"))
    log = place / "output.txt"
    # Loaded once, for all children; nothing is computed here.
    import advbench.benchmark.run  # noqa: F401

    wholes: dict[str, tuple[Path, float]] = {}
    kills = resumes = equal = 0
    for number in range(given.rounds):
        variant = list(VARIANTS)[number % len(VARIANTS)]
        if variant not in wholes:
            began = time.perf_counter()
            if wait(start(command_for(variant, place / f"whole-{variant}", False), log)) != 0:
                print(log.read_text(), file=sys.stderr)
                return 1
            wholes[variant] = (complete(place / f"whole-{variant}")[0], time.perf_counter() - began)
        expected, seconds = wholes[variant]
        runs_dir, here = place / f"round-{number}", 0
        for _ in range(draws.randint(1, MOST_KILLS)):
            command = command_for(variant, runs_dir, draws.random() < 0.5)
            here += kill_once(command, log, draws, given.at, seconds)
            while not here:
                # It was faster than its killer.
                shutil.rmtree(runs_dir)
                command = command_for(variant, runs_dir, False)
                here += kill_once(command, log, draws, given.at, seconds)
            if complete(runs_dir):
                break
        named = draws.random() < 0.5
        code = 0
        if not complete(runs_dir):
            resumes += here
            code = wait(start(command_for(variant, runs_dir, named), log))
        found = [f"exit code {code}"] if code else differences(complete(runs_dir)[0], expected)
        kills, equal = kills + here, equal + (not found)
        print(f"round {number + 1:2}  {variant:12} {here} kills  {', '.join(found) or 'equal'}", flush=True)
        if code:
            print(log.read_text()[-2000:], file=sys.stderr)
        shutil.rmtree(runs_dir)
    print(f"{kills} kills, {resumes} resumed; records and weights equal in {equal} of {given.rounds} rounds")
    shutil.rmtree(place)
    return 0 if equal == given.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
