"""A template: a small package with a data set that works, for authors to adapt."""

from __future__ import annotations

from pathlib import Path

from advbench.contract.template import check_name, write_template
from advbench.data.registry import ENTRY_POINTS

DATASET = '''"""$name: a data set for advbench."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Stripes(Dataset[tuple[Tensor, int]]):
    """Images with a bright horizontal or vertical stripe: replace this with your own images.

    An item is an image and a label. The image may be a PIL image, bytes, or floats in [0, 1]. Images are read
    when they are asked for, so that the data may be larger than the memory.
    """

    classes = ("horizontal", "vertical")

    def __init__(self, count: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.places = torch.randint(8, (count,), generator=draws)
        self.noise = torch.rand(count, 1, 8, 8, generator=draws)
        self.targets = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, place = 0.3 * self.noise[index], int(self.places[index])
        row = image[:, place, :] if self.targets[index] == 0 else image[:, :, place]
        row += 0.6
        return image, self.targets[index]


def $module(data_dir: Path | None = None) -> tuple[Stripes, Stripes]:
    """The training part and the test part; ``data_dir`` is what the user gives as --data-dir."""
    return Stripes(400, seed=0), Stripes(100, seed=1)
'''

TEST = '''"""The promises that every data set of advbench keeps."""

from advbench.contract import check_dataset


def test_contract() -> None:
    """Images, labels, splits, and the same bytes at every reading."""
    broken = [str(check) for check in check_dataset("$module:$module") if not check.holds]
    assert not broken, "\\n".join(broken)
'''


def write_dataset_package(name: str, parent: Path) -> list[Path]:
    """Write ``parent/name/``: a project file, a data set that works, its test and a README.

    Args:
        name: the name of the data set, such as ``my-photos``; module and function are then ``my_photos``.
        parent: where to create the directory; ``parent`` itself is created if missing.

    Returns:
        The files.

    Raises:
        InputError: the name is invalid or taken, or the directory exists or cannot be written.
    """
    check_name(name, "dataset")
    module = name.replace("-", "_")
    words = {
        "Kind": "A data set",
        "part": "images",
        "object": module,
        "group": ENTRY_POINTS,
        "target": f"{module}:{module}",
        "example": f"--dataset {name} --defense at --sequence fgsm,pgd",
    }
    return write_template(name, "dataset", parent, DATASET, TEST, words)
