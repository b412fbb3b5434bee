"""The environment part of a record: versions, processor, device, data."""

import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from advbench.data import DataSet
from advbench.runtime.version import __version__

PACKAGES = ("advbench", "torch", "torchvision", "numpy", "scikit-learn", "scipy", "pydantic", "safetensors")


def describe(device: torch.device, data: DataSet, processes: int = 1) -> dict[str, Any]:
    """Describe the environment of a run for its record; ``processes`` are those that trained it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    channels, height, width = data.image_shape
    return {
        "versions": dict(_versions()),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()}",
        "commit": _commit(),
        "device": f"{device.type} ({name})",
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
        **({} if processes == 1 else {"processes": processes}),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "shape": [channels, height, width],
            "classes": data.num_classes,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            **({} if data.identified_by == "pixels" else {"identified_by": data.identified_by}),
        },
    }


def cpu() -> str:
    """The processor and the instruction set that torch uses, because rounding depends on them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name[^:\n]*:[ \t]*(\S.*)", text, re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, __version__ if package == "advbench" else "unknown"


def _commit() -> str | None:
    """The commit of the running checkout, followed by ``+`` if files differ; None if installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None
