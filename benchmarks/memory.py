"""Peak memory of runs on image folders of two sizes, and the speed of training on streamed images.

    python benchmarks/memory.py
    python benchmarks/memory.py --sizes 200 800 --side 64 --parts memory

The part ``memory`` writes folders of JPEG files and runs ``advbench run`` and ``advbench eval`` on each with
``--data-memory 0``. The peak counts the command and its worker processes. The part ``speed`` trains a
ResNet-18 on 64-pixel images, streamed from files and resident in memory in turns. The script exits with 1 if
the peaks of a command differ by 100 MB or more, or if streaming is slower than 0.9 times resident.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from advbench.data import DataChoices, Split, TensorLoader, load_dataset
from advbench.models import build_model
from attacks_pool import pool
from defenses import TrainPlan, registry

MOST_DIFFERENCE = 100e6
LEAST_RATIO = 0.9
CLASSES = 4
SAMPLED_EVERY = 0.2
"""Seconds between two readings of the memory."""
SPEED_SIDE, SPEED_BATCH = 64, 32
PARTS = ("memory", "speed")
COMMANDS = {
    # Batches are small, so that the number of batches that workers have ready does not hide the difference.
    "run": "--defense at --sequence fgsm --unseen none --epochs 1 "
    "--set pretrain.epochs=1 --set augmentation=none --set batch_size=32",
    "eval": "--attacks fgsm",
}
TINY = """
from torch import nn

def network(num_classes, in_channels, image_size):
    layers = nn.Conv2d(in_channels, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, num_classes))
"""
"""A network that needs little memory itself, so that the images stand out."""


def main() -> int:
    """Run the chosen parts and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="of memory, speed")
    parser.add_argument("--sizes", type=int, nargs=2, default=[2000, 8000], help="training images")
    parser.add_argument("--points", default="64", help="test points that are evaluated and audited")
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=320, help="images of the part speed")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the part speed")
    parser.add_argument("--device", default="cpu", help="device of the part speed")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    passed = True
    with tempfile.TemporaryDirectory() as place:
        if "memory" in parts:
            passed &= measure_memory(Path(place), options.sizes, options.side, options.points)
        if "speed" in parts:
            passed &= measure_speed(Path(place), options.images, options.repeats, options.device)
    return 0 if passed else 1


def measure_memory(place: Path, sizes: list[int], side: int, points: str) -> bool:
    """Whether the peak of each command is nearly the same for both sizes of folder."""
    (place / "tiny_network.py").write_text(TINY)
    peaks: dict[str, list[float]] = {command: [] for command in COMMANDS}
    common = f"--data-memory 0 --model tiny_network:network --points {points} --threads 1 --device cpu"
    for size in sizes:
        folder = place / str(size)
        write_folder(folder, size, size // 4, side)
        for command, words in COMMANDS.items():
            given = [sys.executable, "-m", "advbench", command, *words.split(), *common.split()]
            given += ["--dataset", f"folder:{folder}", "--runs-dir", str(place / "runs")]
            peaks[command].append(peak_of(given, place))
            images = f"{size:,} training and {size // 4:,} test images of {side} pixels"
            print(f"{command} on {images}: {peaks[command][-1] / 1e6:,.0f} MB", flush=True)
    differences = {command: abs(large - small) for command, (small, large) in peaks.items()}
    for command, difference in differences.items():
        print(f"{command}: the peaks differ by {difference / 1e6:.0f} MB")
    return max(differences.values()) < MOST_DIFFERENCE


def write_folder(folder: Path, train: int, test: int, side: int) -> None:
    """Write smooth random JPEG images into ``train/CLASS`` and ``test/CLASS``."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            where = folder / part / f"class{number % CLASSES}"
            where.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            large = small.resize((side, side), Image.Resampling.BICUBIC)
            large.save(where / f"{number:06}.jpg", quality=90)


def peak_of(command: list[str], place: Path) -> float:
    """The largest memory of a command and its child processes, in bytes.

    Raises:
        RuntimeError: the command fails.
    """
    source = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(place)])}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=place)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_of(processes_below(process.pid)))
            time.sleep(SAMPLED_EVERY)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(output.read().decode(errors="replace")[-500:])
    return peak


def processes_below(pid: int) -> list[int]:
    """A process and all of its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, _text(task).split())
    return found


def memory_of(processes: list[int]) -> float:
    """The memory that the processes need together, in bytes.

    Each page of their own or shared between them counts once. Pages of mapped files, which are libraries,
    count as in the largest process: the usual proportional share would depend on what else the machine runs.
    """
    own, files = 0.0, 0.0
    for pid in processes:
        shares = _numbers(f"/proc/{pid}/smaps_rollup")
        own += shares.get("Pss_Anon", 0.0) + shares.get("Pss_Shmem", 0.0)
        files = max(files, _numbers(f"/proc/{pid}/status").get("RssFile", 0.0))
    return own + files


def _numbers(file: str) -> dict[str, float]:
    """The lines ``Name: 12 kB`` of a file of /proc, in bytes."""
    fields = (line.split() for line in _text(Path(file)).splitlines())
    return {words[0].rstrip(":"): 1024 * float(words[1]) for words in fields if words[2:] == ["kB"]}


def _text(file: Path) -> str:
    """The text of a file; nothing if its process has ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


def measure_speed(place: Path, images: int, repeats: int, device: str) -> bool:
    """Whether training on streamed images is nearly as fast as on resident ones."""
    folder = place / "speed"
    write_folder(folder, images, CLASSES, SPEED_SIDE)
    rates: dict[str, list[float]] = {"streamed": [], "resident": []}
    memory = {"streamed": 0.0, "resident": 1e9}
    data = {
        side: load_dataset(f"folder:{folder}", choices=DataChoices(memory=memory[side])) for side in rates
    }
    for _ in range(repeats):
        for side, found in rates.items():
            found.append(images_per_second(data[side].train, device))
    medians = {side: statistics.median(found) for side, found in rates.items()}
    ratio = medians["streamed"] / medians["resident"]
    print(
        f"ResNet-18 at {SPEED_SIDE} pixels: {medians['streamed']:.1f} images/s streamed, "
        f"{medians['resident']:.1f} resident, ratio {ratio:.2f}"
    )
    return ratio >= LEAST_RATIO


def images_per_second(split: Split, device: str) -> float:
    """The speed of an epoch of adversarial training against FGSM."""
    network = build_model("resnet18", num_classes=CLASSES, in_channels=3, image_size=SPEED_SIDE, seed=0)
    defense = registry.build("at", network.to(device))
    plan = TrainPlan(epochs=1, batch_size=SPEED_BATCH, augmentation=())
    began = time.perf_counter()
    loader = TensorLoader(split, SPEED_BATCH, seed=0, device=device)
    defense.fit(loader, [pool.get("fgsm", eps=4 / 255)], plan=plan, progress=False)
    return len(split) / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
