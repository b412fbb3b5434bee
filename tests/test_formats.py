"""Layouts of data sets that people have: small copies of each, good and bad, and Python objects."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import cifar_c
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from advbench.data import DataChoices, DataSet, TensorLoader, load_dataset
from advbench.data.pixels import ArraySource, Pixels
from advbench.data.registry import every_info
from advbench.data.stream import streamed
from attacks_pool.errors import InputError

WNIDS = ("n01440764", "n01443537", "n01484850")


def draw(file: Path, size: tuple[int, int] = (64, 64), *, grey: bool = False, most: int = 256) -> Path:
    """Write an image of (width, height) whose pixels depend on its name and are below ``most``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(abs(hash(file.name)) % 2**32)
    shape = size[::-1] if grey else (*size[::-1], 3)
    Image.fromarray(generator.integers(0, most, shape, dtype=np.uint8)).save(file)
    return file


def refused(dataset: Any, data_dir: Path | None = None, **choices: Any) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(InputError) as caught:
        load_dataset(dataset, data_dir, DataChoices(**choices))
    message = str(caught.value)
    assert "\n" not in message
    return message


def sizes(data: DataSet) -> tuple[int, int, int]:
    """Training, validation and test points."""
    return len(data.train), len(data.validation), len(data.test)


def svhn(root: Path, **changed: Any) -> Path:
    """SVHN's two files, with label 10 for the digit 0."""
    for part, count in (("train", 40), ("test", 20)):
        pixels = np.arange(32 * 32 * 3 * count, dtype=np.uint64).reshape(32, 32, 3, count).astype(np.uint8)
        labels = (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels, **changed})
    return root


def tiny_imagenet(root: Path) -> Path:
    """Three classes of Tiny ImageNet, listed in another order than they are sorted."""
    place = root / "tiny-imagenet-200"
    for wnid in WNIDS:
        for number in range(4):
            draw(place / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
    lines = []
    for number in range(6):
        draw(place / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t32\t44\t62\n")
    (place / "val" / "val_annotations.txt").write_text("".join(lines))
    (place / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    return root


def imagenet(root: Path, *, flat: str | None = None) -> Path:
    """Three classes of ImageNet, with class folders in val or with one of three kinds of labels beside it."""
    for wnid in WNIDS:
        for number in range(3):
            draw(root / "train" / wnid / f"{wnid}_{number}.JPEG", (300 + number, 280))
    for number in range(6):
        name = f"ILSVRC2012_val_{number + 1:08d}"
        draw(root / "val" / ("" if flat else WNIDS[number % 3]) / f"{name}.JPEG", (320, 260))
    names = [f"ILSVRC2012_val_{number + 1:08d}" for number in range(6)]
    if flat == "csv":
        rows = [f"{name},{WNIDS[number % 3]} 1 2 3 4\n" for number, name in enumerate(names)]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    if flat == "txt":
        (root / "val.txt").write_text("".join(f"{name}.JPEG {n % 3}\n" for n, name in enumerate(names)))
    if flat == "kit":
        kit = root / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        # The kit's own numbers: 1 is the last class.
        fields = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
        synsets = np.array([(k + 1, wnid) for k, wnid in enumerate(reversed(WNIDS))], dtype=fields)
        savemat(kit / "meta.mat", {"synsets": synsets})
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(
            "".join(f"{3 - n % 3}\n" for n in range(6))
        )
    return root


def test_svhn(tmp_path: Path) -> None:
    """The official order, digits 0 to 9, and pixels where MATLAB's order has them."""
    data = load_dataset("svhn", svhn(tmp_path))
    assert sizes(data) == (30, 10, 20)
    assert data.test.y.tolist() == [*range(1, 10), 0] * 2
    # X[1, 2, 0, n] is at 2·3·20 + 96·20 + n in MATLAB's X of 20 images.
    assert data.test.x[3, 0, 1, 2] == (96 * 20 + 2 * 60 + 3) % 256 / 255


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"X": np.zeros((32, 32, 3, 7), np.uint8)}, "7) and type uint8 and 40 labels"),
        ({"X": np.zeros((32, 32, 3, 40))}, "type float64"),
        ({"y": np.full((40, 1), 11)}, "labels outside 1 to 10"),
    ],
)
def test_bad_svhn(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    assert said in refused("svhn", svhn(tmp_path, **changed))


def test_svhn_that_is_no_matlab_file(tmp_path: Path) -> None:
    svhn(tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"nothing")
    assert "cannot read" in refused("svhn", tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    assert "no file" in refused("svhn", tmp_path)


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Labels are places in sorted order, and the test points are val's, by its annotations."""
    data = load_dataset("tiny-imagenet", tiny_imagenet(tmp_path))
    assert sizes(data) == (9, 3, 6)
    assert data.classes == WNIDS
    assert data.image_shape == (3, 64, 64)
    assert sorted(data.test.y.tolist()) == [0, 0, 1, 1, 2, 2]
    first = Image.open(tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_0.JPEG").convert("RGB")
    pixels = torch.from_numpy(np.array(first)).permute(2, 0, 1) / 255
    place = next(k for k in range(6) if torch.equal(data.test.x[k], pixels))
    assert data.test.y[place] == 0


def test_bad_tiny_imagenet(tmp_path: Path) -> None:
    table = tiny_imagenet(tmp_path) / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    table.write_text("val_0.JPEG\tn99999999\n")
    assert "unknown class 'n99999999'" in refused("tiny-imagenet", tmp_path)
    table.write_text("val_9.JPEG\tn01440764\n")
    assert "which does not exist" in refused("tiny-imagenet", tmp_path)
    table.write_text("val_0.JPEG\n")
    assert "line 1: expected a file name and a class" in refused("tiny-imagenet", tmp_path)
    assert "neither" in refused("tiny-imagenet", tmp_path / "elsewhere")
    assert "give --data-dir" in refused("tiny-imagenet")


@pytest.mark.parametrize("flat", [None, "csv", "txt", "kit"])
def test_imagenet(tmp_path: Path, flat: str | None) -> None:
    """All four ways to label val give the same data set: 256 pixels on the shorter side, then the "
    "middle 224."""
    data = load_dataset("imagenet", imagenet(tmp_path, flat=flat))
    assert sizes(data) == (6, 3, 6)
    assert data.classes == WNIDS
    assert data.image_shape == (3, 224, 224)
    assert sorted(data.test.y.tolist()) == [0, 0, 1, 1, 2, 2]
    name = "ILSVRC2012_val_00000002.JPEG"
    file = tmp_path / "val" / (name if flat else f"{WNIDS[1]}/{name}")
    picture = Image.open(file).convert("RGB").resize((round(320 * 256 / 260), 256), Image.Resampling.BILINEAR)
    left = (picture.width - 224) // 2
    middle = np.asarray(picture.crop((left, 16, left + 224, 240)))
    pixels = torch.from_numpy(middle.copy()).permute(2, 0, 1) / 255
    place = next(k for k in range(6) if torch.equal(data.test.x[k], pixels))
    assert data.test.y[place] == 1


def test_bad_imagenet(tmp_path: Path) -> None:
    imagenet(tmp_path, flat="csv")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")
    assert "has no label for ILSVRC2012_val_00000001.JPEG" in refused("imagenet", tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    assert "no class folders, and there are no labels beside it" in refused("imagenet", tmp_path)


def test_robustbench_s_images_of_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of val that the package lists; the package itself is not imported."""
    data_dir, package = imagenet(tmp_path / "data"), tmp_path / "site" / "robustbench"
    (package / "helper_files").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    assert "comes with RobustBench: pip install" in refused("imagenet:robustbench", data_dir)
    listed = package / "helper_files" / "imagenet_test_image_ids.txt"
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (5, 1)]
    listed.write_text(f"{WNIDS[1]}/{names[0]}\n{WNIDS[0]}/{names[1]}")
    data = load_dataset("imagenet:robustbench", data_dir)
    assert (data.name, sizes(data), data.classes) == ("imagenet:robustbench", (6, 3, 2), WNIDS)
    whole = load_dataset("imagenet", data_dir)
    assert data.fingerprint != whole.fingerprint
    for x, y in zip(data.test.x, data.test.y, strict=True):
        (place,) = (k for k in range(6) if torch.equal(whole.test.x[k], x))
        assert whole.test.y[place] == y
    assert sorted(data.test.y.tolist()) == [0, 1]
    listed.write_text("n01440764/ILSVRC2012_val_00000099.JPEG")
    assert "val lacks 1 images of" in refused("imagenet:robustbench", data_dir)
    assert "unknown part of imagenet 'robustbenhc': did you mean" in refused("imagenet:robustbenhc", data_dir)


def test_cifar10_c(tmp_path: Path) -> None:
    """15 corruptions at 5 severities, or the named ones; only test points, in a mixed order."""
    data = load_dataset("cifar10-c", cifar_c(tmp_path))
    assert sizes(data) == (0, 0, 150)
    pixels = (data.test.x[:, :2, 0, 0] * 255).round().int().tolist()
    assert sorted(map(tuple, pixels)) == sorted(
        (c, s) for c in range(15) for s in range(1, 6) for _ in range(2)
    )
    assert len({tuple(pair) for pair in pixels[:10]}) > 5
    part = load_dataset("cifar10-c:fog+snow,severity=3", tmp_path)
    assert {tuple(pair) for pair in (part.test.x[:, :2, 0, 0] * 255).round().int().tolist()} == {
        (9, 3),
        (7, 3),
    }
    assert sorted(part.test.y.tolist()) == [3, 3, 8, 8]
    assert len(load_dataset("cifar10-c:saturate", tmp_path).test) == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cifar10-c:fogg", "did you mean 'fog'?"),
        ("cifar10-c:fog,severity=6", "severity=6 must be a whole number from 1 to 5"),
        ("cifar10-c:fog,strength=1", "severity"),
    ],
)
def test_bad_parts_of_cifar10_c(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(text, cifar_c(tmp_path))


def test_bad_cifar10_c(tmp_path: Path) -> None:
    place = cifar_c(tmp_path) / "CIFAR-10-C"
    np.save(place / "fog.npy", np.zeros((9, 32, 32, 3), np.uint8))
    assert "expected bytes of shape (10, 32, 32, 3)" in refused("cifar10-c", tmp_path)
    (place / "fog.npy").write_bytes(b"")
    assert "cannot read" in refused("cifar10-c", tmp_path)
    np.save(place / "labels.npy", np.array([10] * 10))
    assert "labels up to 10" in refused("cifar10-c", tmp_path)


def test_imagenet_c(tmp_path: Path) -> None:
    """Folders of corruption, severity and class, also below the groups of the authors' archives."""
    for wnid in WNIDS:
        draw(tmp_path / "ImageNet-C" / "weather" / "fog" / "2" / wnid / "a.JPEG", (224, 224))
    data = load_dataset("imagenet-c:fog,severity=2", tmp_path)
    assert sizes(data) == (0, 0, 3)
    assert data.classes == WNIDS
    assert "no folder" in refused("imagenet-c:fog,severity=3", tmp_path)


def test_robustbench_s_images_of_imagenet_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the listed images, of every corruption and severity, which are known for each test point."""
    listed = tmp_path / "site" / "robustbench" / "helper_files" / "imagenet_test_image_ids.txt"
    listed.parent.mkdir(parents=True)
    (listed.parents[1] / "__init__.py").touch()
    listed.write_text(f"{WNIDS[0]}/a.JPEG\n{WNIDS[2]}/b.JPEG\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    for corruption, severity in (("fog", 2), ("snow", 2)):
        for wnid, names in zip(WNIDS, ("ac", "d", "eb"), strict=True):
            for name in names:
                file = tmp_path / "ImageNet-C" / corruption / str(severity) / wnid / f"{name}.JPEG"
                draw(file, (224, 224), most=64 if corruption == "fog" else 256)
    data = load_dataset("imagenet-c:robustbench,fog+snow,severity=2", tmp_path)
    assert (sizes(data), data.classes) == ((0, 0, 4), WNIDS)
    assert data.groups is not None
    assert data.groups.names == (("fog", "2"), ("snow", "2"))
    dark = data.test.x.mean((1, 2, 3)) < 0.25
    assert [int(number) for number in data.groups.numbers] == [0 if one else 1 for one in dark]
    assert sorted(data.test.y.tolist()) == [0, 0, 2, 2]
    file.unlink()
    assert "snow/2 lacks 1 images of" in refused("imagenet-c:robustbench,snow,severity=2", tmp_path)
    assert "RobustBench uses all images of cifar10-c" in refused("cifar10-c:robustbench", tmp_path)


class TestNpz:
    """One file of arrays."""

    arrays: ClassVar[dict[str, Any]] = {
        "x_train": np.arange(40 * 36, dtype=np.uint64).reshape(40, 6, 6).astype(np.uint8),
        "y_train": np.arange(40) % 2,
        "x_test": np.arange(10 * 36, dtype=np.uint64).reshape(10, 6, 6).astype(np.uint8),
        "y_test": np.arange(10) % 2,
    }

    def test_bytes_floats_and_orders_of_axes(self, tmp_path: Path) -> None:
        colour = np.random.default_rng(0).integers(0, 256, (10, 6, 7, 3), dtype=np.uint8)
        np.savez(
            tmp_path / "a.npz", x_test=colour, y_test=np.arange(10)[:, None] % 3, classes=["a", "b", "c"]
        )
        data = load_dataset(f"npz:{tmp_path / 'a.npz'}")
        assert (data.image_shape, data.classes, sizes(data)) == ((3, 6, 7), ("a", "b", "c"), (0, 0, 10))
        assert torch.equal(data.test.x, torch.from_numpy(colour).permute(0, 3, 1, 2) / 255)
        floats = self.arrays["x_test"] / np.float32(300)
        np.savez(tmp_path / "b.npz", x_test=floats, y_test=self.arrays["y_test"])
        assert torch.equal(load_dataset(f"npz:{tmp_path / 'b.npz'}").test.x[:, 0], torch.from_numpy(floats))

    def test_splits_and_subsets(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **self.arrays)
        text = f"npz:{tmp_path / 'a.npz'}"
        assert sizes(load_dataset(text)) == (36, 4, 10)
        assert sizes(load_dataset(text, choices=DataChoices(train_points=20))) == (18, 2, 10)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"x_test": np.zeros((10, 6, 6)) - 0.5}, "values from -0.5 to -0.5"),
            ({"x_test": np.full((10, 6, 6), 7.0)}, "put any normalisation inside the model"),
            ({"x_test": np.full((10, 6, 6), np.nan)}, "expected floats in [0, 1]"),
            ({"x_test": np.zeros((10, 5, 6, 6), np.uint8)}, "neither 1 nor 3 channels"),
            ({"x_test": np.zeros((10, 6), np.uint8)}, "images of shape (10, 6)"),
            ({"x_test": np.zeros((10, 8, 8), np.uint8)}, "training and test images differ"),
            ({"x_test": np.array(["a"] * 10)}, "images of shape (10,)"),
            ({"y_test": np.zeros(10)}, "labels of type float64"),
            ({"y_test": np.arange(9)}, "shape (9,) for 10 images"),
            ({"y_test": np.arange(10) - 1}, "a label is -1"),
            ({"classes": ["only"]}, "there are 1 classes"),
            ({"classes": "ab"}, "classes has shape (); expected one name for each class"),
            ({"y_test": np.arange(10) * 10**9}, "a label is 9000000000; expected classes numbered"),
            ({"y_test": np.full(10, 2**63, np.uint64)}, "a label is 9223372036854775808"),
            ({"x_test": None}, "has no array x_test"),
            ({"y_train": None}, "one of x_train and y_train"),
        ],
    )
    def test_bad_arrays(self, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
        arrays = {key: value for key, value in {**self.arrays, **changed}.items() if value is not None}
        np.savez(tmp_path / "a.npz", **arrays)
        assert said in refused(f"npz:{tmp_path / 'a.npz'}")

    def test_bad_files(self, tmp_path: Path) -> None:
        assert "no file" in refused(f"npz:{tmp_path / 'none.npz'}")
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 damaged")
        assert "cannot read" in refused(f"npz:{tmp_path / 'a.npz'}")
        assert "names no file" in refused("npz:")
        np.save(tmp_path / "one.npy", np.zeros(3))
        (tmp_path / "one.npy").rename(tmp_path / "one.npz")
        assert "holds a single array" in refused(f"npz:{tmp_path / 'one.npz'}")
        np.savez_compressed(tmp_path / "b.npz", **self.arrays)
        whole = (tmp_path / "b.npz").read_bytes()
        for place in range(60, len(whole), 97):
            (tmp_path / "b.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            with suppress(InputError):
                load_dataset(f"npz:{tmp_path / 'b.npz'}")


class Pictures(Dataset[Any]):
    """A map-style data set that counts what is read."""

    def __init__(self, count: int = 30, make: Callable[[int], Any] | None = None) -> None:
        self.count, self.read = count, 0
        self.targets: list[int] | None = None
        self.make = make or (lambda k: Image.new("RGB", (9, 8), (k, 2 * k, 3 * k)))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index >= self.count:
            raise IndexError(index)
        self.read += 1
        return self.make(index), index % 3


class TestObjects:
    """Anything of the user's."""

    def test_a_loader_that_chooses_points(self) -> None:
        """Its data set does not know which; the order and the sizes of batches do not matter."""
        points = TensorDataset(torch.rand(40, 1, 6, 6), torch.arange(40) % 4)
        fair = DataLoader(points, batch_sampler=BatchSampler(RandomSampler(points), 7, drop_last=False))
        for loader in (fair, DataLoader(points, batch_size=None), DataLoader(points, 8, shuffle=True)):
            assert sizes(load_dataset(loader)) == (0, 0, 40)
        some = SubsetRandomSampler(range(10))
        unfair = [DataLoader(points, 4, sampler=some), DataLoader(Pictures(), sampler=some)]
        unfair += [DataLoader(points, sampler=RandomSampler(points, replacement=True))]
        for loader in (*unfair, DataLoader(points, batch_sampler=BatchSampler(some, 3, drop_last=True))):
            assert "may leave out points or repeat some: give its data set" in refused(loader)
            assert "may leave out points" in refused((points, loader))
        custom: Any = [[0, 1], [2]]
        assert "a DataLoader with a list may leave out" in refused(DataLoader(points, batch_sampler=custom))

    def test_a_pair_of_data_sets(self) -> None:
        data = load_dataset((Pictures(60), Pictures(12)))
        assert (sizes(data), data.num_classes, data.image_shape) == ((54, 6, 12), 3, (3, 8, 9))
        assert torch.equal(data.test.x[5, :, 0, 0], torch.tensor([5, 10, 15]) / 255)
        assert data.name == "python:tuple"

    def test_tensors_are_not_rounded(self) -> None:
        x, y = torch.rand(40, 1, 6, 6), torch.arange(40) % 4
        pair = load_dataset((TensorDataset(x, y), (x[:8], y[:8])))
        assert torch.equal(pair.test.x, x[:8])
        assert load_dataset((x, y)).test.y.tolist() == y.tolist()
        assert sizes(load_dataset(DataLoader(TensorDataset(x, y), 7))) == (0, 0, 40)

    def test_subsets_mappings_and_float_items(self) -> None:
        some = load_dataset(Subset(Pictures(30), [4, 7, 11]))
        assert some.test.y.tolist() == [1, 1, 2]
        items = [{"image": Image.new("L", (6, 6), 7 * k), "label": k % 2} for k in range(6)]
        assert torch.equal(load_dataset({"test": items}).test.x[3], torch.full((1, 6, 6), 21 / 255))
        floats = load_dataset(Pictures(6, lambda k: torch.full((1, 5, 5), k / 7)))
        assert torch.equal(floats.test.x[:, 0, 0, 0], torch.arange(6) / 7)

    def test_labels_that_are_changed_on_the_way(self) -> None:
        """A list of labels serves only where it agrees with the items."""
        listed, changed = Pictures(30), Pictures(30)
        listed.targets = [index % 3 for index in range(30)]
        changed.targets = [index % 5 for index in range(30)]
        assert [load_dataset(one).test.y.tolist() for one in (listed, changed)] == [listed.targets] * 2

    def test_images_are_read_when_they_are_asked_for(self) -> None:
        """With no memory for them, a batch reads its own images; the fingerprint of a small set reads "
        "each once."""
        source = Pictures(30)
        data = load_dataset(source, choices=DataChoices(memory=0))
        before = source.read
        assert torch.equal(data.test.images[3:5][:, 0, 0, 0], torch.tensor([3, 4]) / 255)
        assert source.read == before + 2

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (7, "cannot be a int"),
            ([], "has no items"),
            ({"train": Pictures()}, "with the parts train"),
            (Pictures(6, lambda _: torch.full((1, 5, 5), 2.0)), "values from 2 to 2"),
            (Pictures(6, lambda _: torch.zeros(2, 5, 5)), "1 or 3 channels"),
            (
                Pictures(6, lambda k: Image.new("L", (5 + k, 5))),
                "item 1 is an image of uint8 and shape (1, 5, 6)",
            ),
            (Pictures(0), "has no items"),
            ([(Image.new("L", (5, 5)), "cat"), (Image.new("L", (5, 5)), "dog")] * 2, "labels of type"),
            ([Image.new("L", (5, 5))] * 3, "expected a pair (image, label)"),
            ([{"picture": 1}] * 3, "has the keys picture"),
        ],
    )
    def test_bad_objects(self, given: Any, said: str) -> None:
        assert said in refused(given)

    def test_lists_of_numbers(self) -> None:
        """As Hugging Face's data sets give arrays: whole numbers up to 255 are bytes."""
        data = load_dataset([{"image": [[k, 2], [255, 0]], "label": k % 2} for k in range(6)])
        assert torch.equal(data.test.x[3, 0] * 255, torch.tensor([[3.0, 2.0], [255.0, 0.0]]))
        message = refused([{"image": [[-1, 2], [255, 0]], "label": k % 2} for k in range(6)])
        assert "item 0 is an image of type int64" in message

    def test_a_factory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """``package.module:factory``, installed or in the current directory."""
        (tmp_path / "own_pictures.py").write_text(
            "import torch\n"
            "def make(data_dir=None):\n"
            "    x = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0))\n"
            "    return (x, torch.arange(30) % 3), (x[:9], torch.arange(9) % 3)\n"
            "def broken():\n    raise RuntimeError('no disk')\n"
        )
        monkeypatch.chdir(tmp_path)
        data = load_dataset("own_pictures:make")
        assert (data.name, sizes(data)) == ("own_pictures:make", (27, 3, 9))
        assert "the factory failed: RuntimeError: no disk" in refused("own_pictures:broken")
        assert "did you mean 'make'" in refused("own_pictures:mak")
        assert "no module 'own_picture'" in refused("own_picture:make")


def test_data_sets_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed, and loaded by name; none takes the place of ours."""

    class Point(SimpleNamespace):
        def load(self) -> Any:
            return lambda: (torch.rand(9, 1, 6, 6), torch.arange(9) % 3)

    points = [Point(name=name, value="x:y", dist=SimpleNamespace(name="sky")) for name in ("stars", "digits")]
    monkeypatch.setattr("advbench.data.registry.entry_points", lambda **_: points)
    assert every_info()["stars"].description == "of the package sky"
    assert sizes(load_dataset("stars")) == (0, 0, 9)
    assert len(load_dataset("digits").train) == 1293
    assert "did you mean 'stars'?" in refused("star")


def test_near_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("foldr:photos") == "unknown data set 'foldr:photos': did you mean folder:photos?"
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refused("photos") == "unknown data set 'photos': did you mean folder:photos?"
    assert "used as it is" in refused(load_dataset("digits"), classes=3)


class TestFolder:
    """Class folders of any size and colour."""

    def fill(self, root: Path, *, train: bool = True) -> str:
        for part in ("train", "test") if train else ("test",):
            for number, name in enumerate(("cat", "dog")):
                for k in range(6):
                    draw(root / part / name / f"{k}.png", (20 + 3 * k, 30 - number), grey=bool(number))
        return f"folder:{root}"

    def test_any_size_is_brought_to_one(self, tmp_path: Path) -> None:
        text = self.fill(tmp_path)
        assert "--image-size brings all to one size" in refused(text)
        data = load_dataset(text, choices=DataChoices(image_size=16))
        assert data.image_shape == (3, 16, 16)
        assert load_dataset(text, choices=DataChoices(image_size=16, channels=1)).image_shape == (1, 16, 16)

    def test_a_link_to_a_lost_image(self, tmp_path: Path) -> None:
        """It is not left out in silence; other links are followed."""
        text, place = self.fill(tmp_path), tmp_path / "train" / "cat"
        (place / "linked.png").symlink_to(place / "0.png")
        assert sizes(load_dataset(text, choices=DataChoices(image_size=16))) == (11, 2, 12)
        (place / "lost.png").symlink_to(tmp_path / "nowhere.png")
        assert "lost.png is a link to a file that does not exist" in refused(text)

    def test_streaming_changes_no_bit(self, tmp_path: Path) -> None:
        """Batches, fingerprint and order are those of images in memory, with and without worker processes."""
        text = self.fill(tmp_path)
        resident, streamed = (
            load_dataset(text, choices=DataChoices(image_size=16, memory=memory)) for memory in (1e9, 0)
        )
        assert resident.train.images.resident
        assert not streamed.train.images.resident
        assert resident.fingerprint == streamed.fingerprint
        expected = list(TensorLoader(resident.train, 4, seed=1))
        for workers in (0, 2):
            found = list(TensorLoader(streamed.train, 4, seed=1, workers=workers))
            assert len(found) == len(expected) > 1
            for (x, y), (x_, y_) in zip(expected, found, strict=True):
                assert torch.equal(x, x_)
                assert torch.equal(y, y_)

    def test_a_large_set_is_known_by_its_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether its images are in memory or not: by names, sizes and some of the images."""
        monkeypatch.setattr("advbench.data.splits.FINGERPRINT_BYTES", 100)
        monkeypatch.setattr("advbench.data.splits.FINGERPRINT_IMAGES", 5)
        text = self.fill(tmp_path)

        def loaded(memory: float) -> DataSet:
            return load_dataset(text, choices=DataChoices(image_size=16, memory=memory))

        first = loaded(0)
        assert first.identified_by == "sample"
        assert loaded(1e9).fingerprint == first.fingerprint
        file = tmp_path / "train" / "cat" / "1.png"
        file.rename(file.with_name("1a.png"))
        assert loaded(0).fingerprint != first.fingerprint

    def test_a_damaged_file_in_a_worker_is_one_line(self, tmp_path: Path) -> None:
        data = load_dataset(self.fill(tmp_path), choices=DataChoices(image_size=16, memory=0))
        for file in tmp_path.glob("train/dog/*"):
            file.write_bytes(b"damaged")
        with pytest.raises(InputError, match="is not a readable image") as caught:
            list(TensorLoader(data.train, 4, seed=0, workers=1))
        assert "\n" not in str(caught.value)

    def test_val_in_place_of_test(self, tmp_path: Path) -> None:
        text = self.fill(tmp_path)
        whole = load_dataset(text, choices=DataChoices(image_size=16))
        (tmp_path / "test").rename(tmp_path / "val")
        assert load_dataset(text, choices=DataChoices(image_size=16)).fingerprint == whole.fingerprint

    def test_without_train(self, tmp_path: Path) -> None:
        data = load_dataset(self.fill(tmp_path, train=False), choices=DataChoices(image_size=16))
        assert sizes(data) == (0, 0, 12)
        assert data.classes == ("cat", "dog")

    def test_classes(self, tmp_path: Path) -> None:
        for name in ("ant", "bee", "cat"):
            for part in ("train", "test"):
                for k in range(5):
                    draw(tmp_path / part / name / f"{k}.png", (8, 8))
        text = f"folder:{tmp_path}"
        some = load_dataset(text, choices=DataChoices(classes=("cat", "ant")))
        assert (some.classes, sizes(some)) == (("ant", "cat"), (8, 2, 10))
        assert some.train.y.bincount().tolist() == [4, 4]
        assert load_dataset(text, choices=DataChoices(classes=2)).classes == ("ant", "bee")
        assert "did you mean 'cat'?" in refused(text, classes=("ant", "cet"))
        assert "exceeds the 3 classes" in refused(text, classes=4)
        assert "exceeds the 15 training images" in refused(text, train_points=16)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"image_size": 3}, "image_size=3 is too small"),
        ({"channels": 2}, "give 1 for grey or 3 for colour"),
        ({"classes": 1}, "needs two or more"),
        ({"train_points": 0}, "train_points=0"),
        ({"memory": -1}, "memory=-1"),
    ],
)
def test_bad_choices(choices: dict[str, Any], said: str) -> None:
    assert said in refused("digits", **choices)


def test_listed_sets_can_be_resized() -> None:
    data = load_dataset("digits", choices=DataChoices(image_size=12, channels=3))
    assert data.image_shape == (3, 12, 12)
    assert data.test.x.min() >= 0
    assert data.test.x.max() <= 1
    assert data.fingerprint != load_dataset("digits").fingerprint


class Frozen:
    """Images of 255 if the process that reads them has exempted old objects from collection, else of 0."""

    shape = (1, 2, 2)
    resident = False

    def __len__(self) -> int:
        return 4

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (B, 1, 2, 2)."""
        return np.full((len(rows), *self.shape), 255 if gc.get_freeze_count() else 0, dtype=np.uint8)


def test_a_worker_does_not_collect_what_it_inherits() -> None:
    """A collection writes to every object, which would copy their pages in the middle of an epoch."""
    (x,) = streamed(Pixels(Frozen()), [np.arange(4)], workers=1)
    assert torch.equal(x, torch.ones(4, 1, 2, 2))
    assert gc.get_freeze_count() == 0


def test_bytes_become_the_nearest_float32() -> None:
    """Rounded once, as a division is; a product with the reciprocal differs for some values."""
    for scale in (16, 255):
        values = np.arange(scale + 1, dtype=np.uint8).reshape(-1, 1, 1, 1)
        found = Pixels(ArraySource(values, scale=scale))[:]
        assert torch.equal(found, torch.from_numpy((values.astype(np.float64) / scale).astype(np.float32)))
