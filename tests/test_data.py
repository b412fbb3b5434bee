"""The data sets: splits, fingerprints, files in every state of disrepair, and the loader."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advbench.data import DATASETS, DataSet, Split, TensorLoader, load_dataset
from advbench.data.decode import decode
from advbench.data.sets import defaults_for
from advbench.data.splits import stratified_holdout
from attacks_pool.errors import InputError

DIGITS_FINGERPRINT = "0830e6997ac0f0a7"
MNIST_FINGERPRINT = "bed9ba0a247053ce"


def refused(name: str, data_dir: Path | None = None) -> str:
    """The one line with which loading ``name`` is refused."""
    with pytest.raises(InputError) as caught:
        load_dataset(name, data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def splits(data: DataSet) -> tuple[Split, Split, Split]:
    """Training, validation and test."""
    return data.train, data.validation, data.test


def test_digits_are_the_documented_ones(digits: DataSet) -> None:
    """Sizes, ranges, types, classes and the fingerprint, which every machine must get."""
    assert digits.image_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.fingerprint == DIGITS_FINGERPRINT
    total = sum(torch.bincount(split.y) for split in splits(digits))
    for split, size in zip(splits(digits), (1293, 144, 360), strict=True):
        assert len(split) == size
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
        assert (split.x.min(), split.x.max()) == (0, 1)
        # Each class has its share, to within one image.
        assert (torch.bincount(split.y) - total * size / 1797).abs().max() <= 1.5


def test_digits_splits_are_disjoint_and_complete(digits: DataSet) -> None:
    """Every image of scikit-learn's is in exactly one split (its images are all different)."""
    from sklearn.datasets import load_digits

    rows = [tuple(image.tolist()) for split in splits(digits) for image in (split.x * 16).flatten(1)]
    assert sorted(rows) == sorted(tuple(row) for row in load_digits().data.tolist())
    assert len(set(rows)) == 1797


def test_listing_agrees_with_loading(digits: DataSet) -> None:
    """What ``DATASETS`` says of digits is what loading gives, and all of it goes into JSON."""
    info = DATASETS["digits"]
    assert info.image_shape == digits.image_shape
    assert (info.train, info.validation, info.test) == tuple(map(len, splits(digits)))
    assert (info.budget, info.augmentation) == (digits.budget, digits.augmentation)
    assert info.default_model == digits.default_model == "digits-cnn"
    listed = json.loads(json.dumps([dataclasses.asdict(info) for info in DATASETS.values()]))
    needy = {row["name"] for row in listed if row["needs_data_dir"]}
    assert {"mnist", "cifar100", "svhn", "imagenet", "cifar10-c"} <= needy
    assert not needy & {"digits", "folder:PATH", "npz:PATH", "hf:PATH"}


def test_defaults_follow_the_shape() -> None:
    """The nearest known data set decides; images in colour are augmented."""
    budgets = {(1, 8, 8): "digits", (1, 12, 13): "mnist", (1, 224, 224): "mnist"}
    budgets |= {(3, 32, 32): "cifar10", (3, 96, 96): "cifar10", (3, 97, 64): "imagenet"}
    for shape, budget in budgets.items():
        assert defaults_for(shape).budget == budget
        assert defaults_for(shape).augmentation == (("crop", "flip") if shape[0] == 3 else ())


class TestStratifiedHoldout:
    """The split that everything rests on."""

    def test_by_hand(self) -> None:
        """10, 5 and 3 points, 6 held out: shares 3.33, 1.67 and 1, so 3, 2 and 1."""
        labels = np.repeat([0, 1, 2], [10, 5, 3])
        kept, held = stratified_holdout(labels, 6, classes="abc", seed=0)
        assert np.bincount(labels[held]).tolist() == [3, 2, 1]
        assert sorted([*kept, *held]) == list(range(18))
        assert kept.tolist() == sorted(kept)

    def test_tiny_classes_give_and_keep_a_point(self) -> None:
        """A class of two is in both parts whatever the size asked for."""
        labels = np.repeat([0, 1], [30, 2])
        for size in (1, 3, 31):
            kept, held = stratified_holdout(labels, size, classes="ab", seed=0)
            assert set(labels[kept]) == set(labels[held]) == {0, 1}

    def test_held_out_prefix_is_mixed(self) -> None:
        """Held-out points are shuffled across classes, not class after class."""
        labels = np.repeat([0, 1], 500)
        _, held = stratified_holdout(labels, 200, classes="ab", seed=0)
        assert 20 <= labels[held[:60]].sum() <= 40


def mnist_dir() -> Path:
    """The directory with the real MNIST, or a skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    directory = Path(os.environ.get("ADVBENCH_DATA", beside))
    if not (directory / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST/raw in $ADVBENCH_DATA or in ../shared/data beside the checkout")
    return directory


def test_real_mnist() -> None:
    """Sizes and the fingerprint; the first thousand test points are from both halves of the file."""
    directory = mnist_dir()
    mnist = load_dataset("mnist", str(directory))
    assert [len(split) for split in splits(mnist)] == [54000, 6000, 10000]
    assert mnist.image_shape == (1, 28, 28)
    assert mnist.fingerprint == MNIST_FINGERPRINT
    official = (directory / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    position = {official[i : i + 784]: i // 784 for i in range(0, len(official), 784)}
    first = (mnist.test.x[:1000] * 255).round().to(torch.uint8).flatten(1).numpy()
    assert 400 < sum(position[row.tobytes()] < 5000 for row in first) < 600


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """The IDX file of ``values``."""
    return struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A directory with a tiny Fashion-MNIST, one file of it gzipped."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        labels = idx(np.arange(n, dtype=np.uint8) % 10)
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return tmp_path


def test_idx_files_plain_and_gzipped(fashion: Path) -> None:
    """A tenth is validation, but at least one image a class."""
    loaded = load_dataset("fashion-mnist", fashion)
    assert [len(split) for split in splits(loaded)] == [30, 10, 20]
    assert loaded.classes[9] == "Ankle boot"
    assert torch.bincount(loaded.validation.y).tolist() == [1] * 10


def test_fingerprint_sees_every_byte(fashion: Path) -> None:
    """One changed pixel or label changes it; a second read does not."""
    before = load_dataset("fashion-mnist", fashion).fingerprint
    assert load_dataset("fashion-mnist", fashion).fingerprint == before
    images = fashion / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    data = bytearray(images.read_bytes())
    data[-1] ^= 1
    images.write_bytes(data)
    pixel = load_dataset("fashion-mnist", fashion).fingerprint
    labels = fashion / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    swapped = np.arange(40, dtype=np.uint8) % 10
    swapped[:2] = [1, 0]
    labels.write_bytes(idx(swapped))
    assert len({before, pixel, load_dataset("fashion-mnist", fashion).fingerprint}) == 3


def test_missing_and_damaged_idx_files(fashion: Path) -> None:
    """Every message names the file, or the option that is missing."""
    assert "give --data-dir" in refused("fashion-mnist")
    assert "MNIST/raw/train-images-idx3-ubyte" in refused("mnist", fashion)
    assert "torchvision's layout" in refused("mnist", fashion / "nowhere")
    labels = fashion / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-12])
    assert "cannot read" in refused("fashion-mnist", fashion)
    labels.write_bytes(b"not gzip")
    assert "cannot read" in refused("fashion-mnist", fashion)
    plain = labels.with_suffix("")
    for data, reason in (
        (b"", "is not an IDX file"),
        (b"\0\0\x08", "is not an IDX file"),
        (idx(np.zeros((40, 1), np.uint8)), "is not an IDX file"),
        (idx(np.zeros(40, np.uint8))[:-1], "is damaged: its header says 40 values, but it has 39"),
        (idx(np.zeros(39, np.uint8)), "40 images of 28×28 pixels and 39 labels"),
        (idx(np.full(40, 10, np.uint8)), "labels up to 10"),
    ):
        plain.write_bytes(data)
        assert reason in refused("fashion-mnist", fashion)


class Python2Pickler(pickle.Pickler):
    """Writes arrays as the official batches have them: text for bytes, numpy's old home, integer flags."""

    def reducer_override(self, obj: Any) -> Any:
        """Arrays and dtypes in the old form."""
        if isinstance(obj, np.dtype):
            return np.dtype, (obj.str[1:], 0, 1), (3, "|", None, None, None, -1, -1, 0)
        if isinstance(obj, np.ndarray):
            reconstruct = obj.__reduce__()[0]
            state = (1, obj.shape, obj.dtype, False, obj.tobytes().decode("latin1"))
            return reconstruct, (np.ndarray, (0,), "b"), state
        return NotImplemented


def write_pickle(path: Path, content: Any) -> str:
    """Write ``content`` and give its MD5."""
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    data = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a tiny CIFAR-10 whose checksums count as the official ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for which, names in (("train_list", ["data_batch_1", "data_batch_2"]), ("test_list", ["test_batch"])):
        for name in names:
            data = random.integers(0, 256, (20, 3072), dtype=np.uint8)
            content = {"data": data, "labels": list(range(10)) * 2}
            lists[which].append([name, write_pickle(folder / name, content)])
    md5 = write_pickle(folder / "batches.meta", {"label_names": [f"class{k}" for k in range(10)]})
    for which, value in lists.items():
        monkeypatch.setattr(CIFAR10, which, value)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar_reads_python2_batches(cifar: Path) -> None:
    """The test set keeps the official order."""
    loaded = load_dataset("cifar10", cifar)
    assert [len(split) for split in splits(loaded)] == [30, 10, 20]
    assert loaded.test.y.tolist() == list(range(10)) * 2
    assert loaded.classes[3] == "class3"
    random = np.random.default_rng(0)
    *_, test = (random.integers(0, 256, (20, 3072), dtype=np.uint8) for _ in range(3))
    assert torch.equal(loaded.test.x, torch.from_numpy(test).view(20, 3, 32, 32).float() / 255)


def test_cifar_refuses_other_files(cifar: Path) -> None:
    """A changed batch fails its checksum; a missing one is named."""
    batch = cifar / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes() + b".")
    assert f"{batch} is not the official file: its MD5" in refused("cifar10", cifar)
    batch.unlink()
    assert f"no file {batch}" in refused("cifar10", cifar)
    assert "cifar-100-python/train" in refused("cifar100", cifar)


class Malicious:
    """Unpickled without care, this creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_cifar_runs_no_code_from_a_batch(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a batch with the right checksum can only hold arrays."""
    from torchvision.datasets import CIFAR10

    made = cifar / "made"
    md5 = write_pickle(cifar / "cifar-10-batches-py" / "evil", {"data": Malicious(str(made))})
    monkeypatch.setattr(CIFAR10, "train_list", [["evil", md5]])
    assert "only arrays are read" in refused("cifar10", cifar)
    assert not made.exists()


def write_image(path: Path, value: int = 0, *, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> None:
    """An image of random noise that ``value`` seeds; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    noise = np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def write_images(root: Path, train: int, test: int, **more: Any) -> None:
    """A folder of two classes with so many images each."""
    for part, count in (("train", train), ("test", test)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(root / part / name / f"{i}.png", 1000 * count + 100 * k + i, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, 4 training and 3 test images each, and files that are none of ours."""
    write_images(tmp_path, 4, 3)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_folder(folder: Path) -> None:
    """Pixels, labels, sizes and names; non-square images keep height before width."""
    loaded = load_dataset(f"folder:{folder}")
    assert loaded.name == f"folder:{folder.name}"
    assert loaded.image_shape == (3, 5, 6)
    assert loaded.classes == ("cat", "dog")
    assert [len(split) for split in splits(loaded)] == [6, 2, 6]
    assert (loaded.budget, loaded.default_model) == ("cifar10", "resnet18")
    expected = np.array(Image.open(folder / "test" / "dog" / "1.png"))
    match = (loaded.test.x == torch.from_numpy(expected).permute(2, 0, 1).float() / 255).flatten(1).all(1)
    assert match.sum() == 1
    assert loaded.test.y[match].item() == 1


def test_folder_is_the_same_wherever_it_lies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the path nor the order of creation is in the fingerprint; a class name is."""
    before = load_dataset(f"folder:{folder}")
    copy = tmp_path_factory.mktemp("other") / "copy"
    for file in sorted(folder.rglob("*.png"), reverse=True):
        target = copy / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    after = load_dataset(f"folder:{copy}")
    assert after.fingerprint == before.fingerprint
    assert torch.equal(after.test.x, before.test.x)
    for part in ("train", "test"):
        (copy / part / "dog").rename(copy / part / "puppy")
    assert load_dataset(f"folder:{copy}").fingerprint != before.fingerprint


def test_folder_test_order_mixes_classes(tmp_path: Path) -> None:
    """The first half of the test set is not the first class."""
    write_images(tmp_path, 2, 40, size=(2, 2))
    labels = load_dataset(f"folder:{tmp_path}").test.y
    assert labels.sum() == 40
    assert 10 <= labels[:40].sum() <= 30


def test_folder_of_grey_images_and_one_in_colour(folder: Path) -> None:
    """Grey alone is one channel; one colour image anywhere makes three, equal in the grey ones."""
    for i, file in enumerate(sorted(folder.rglob("*.png"))):
        write_image(file, i, mode="L")
    grey = load_dataset(f"folder:{folder}")
    assert grey.image_shape == (1, 5, 6)
    assert grey.budget == "digits"
    write_image(folder / "train" / "dog" / "3.png", 7, mode="RGB")
    mixed = load_dataset(f"folder:{folder}")
    assert mixed.image_shape == (3, 5, 6)
    assert torch.equal(mixed.test.x, grey.test.x.expand(-1, 3, -1, -1))


def test_large_images_are_read_by_threads_in_order(tmp_path: Path) -> None:
    """The threaded path gives each image its own label."""
    for part in ("train", "test"):
        for k, name in enumerate("ab"):
            for i in range(3):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (128, 128), (100 * k, i, 0)).save(path)
    loaded = load_dataset(f"folder:{tmp_path}")
    for split in splits(loaded):
        assert torch.equal((split.x[:, 0, 0, 0] * 255).round().long(), 100 * split.y)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (lambda root: shutil.rmtree(root / "test"), "no folder {root}/test: expected test/CLASS/*"),
    "no classes": (
        lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()],
        "{root}/train is empty",
    ),
    "one class": (
        lambda root: shutil.rmtree(root / "train" / "dog"),
        "{root}/train has only one class, 'cat'",
    ),
    "unknown class": (
        lambda root: (root / "test" / "dgo").mkdir(),
        "unknown class 'dgo': did you mean 'dog'? ({root}/test/dgo has no folder of that name in train)",
    ),
    "untested class": (
        lambda root: shutil.rmtree(root / "test" / "dog"),
        "no folder {root}/test/dog: class 'dog' has no test images",
    ),
    "empty class": (
        lambda root: [file.unlink() for file in (root / "test" / "dog").iterdir()],
        "class folder {root}/test/dog contains no images",
    ),
    "one image": (
        lambda root: [(root / "train" / "dog" / f"{i}.png").unlink() for i in range(3)],
        "class 'dog' has 1 training image, but 2 are needed",
    ),
    "text": (
        lambda root: (root / "train" / "dog" / "2.png").write_text("hello"),
        "{root}/train/dog/2.png is not a readable image: its format is unknown",
    ),
    "truncated": (
        lambda root: os.truncate(root / "test" / "cat" / "0.png", 60),
        "{root}/test/cat/0.png is not a readable image: ",
    ),
    "empty file": (
        lambda root: os.truncate(root / "train" / "cat" / "0.png", 0),
        "{root}/train/cat/0.png is not a readable image",
    ),
    "sizes": (
        lambda root: write_image(root / "test" / "cat" / "1.png", size=(7, 5)),
        "{root}/train/cat/0.png is 6×5 and {root}/test/cat/1.png is 7×5",
    ),
    "float": (
        lambda root: Image.new("F", (6, 5)).save(root / "train" / "cat" / "0.tiff"),
        "{root}/train/cat/0.tiff: floating-point images",
    ),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_broken_folders(folder: Path, what: str) -> None:
    """Each is refused with a line that names the file or folder."""
    breakage, expected = BREAKAGES[what]
    breakage(folder)
    assert expected.format(root=folder) in refused(f"folder:{folder}")


def test_names_of_no_data_set(tmp_path: Path) -> None:
    """The nearest name is offered, and ``folder:PATH`` is no data set by itself."""
    assert "did you mean 'mnist'" in refused("mnsit")
    assert "names no folder" in refused("folder:")
    assert "no folder PATH" in refused("folder:PATH")
    gone = tmp_path / "gone"
    assert refused(f"folder:{gone}").startswith(f"no folder {gone}: expected one with")


def rgba() -> Image.Image:
    """A transparent and an opaque pixel of one colour."""
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((0, 0), (10, 20, 30, 0))
    return image


GREY = Image.fromarray(np.array([[7, 200]], dtype=np.uint8))
MODES: dict[str, tuple[Image.Image, list[Any]]] = {
    "black and white": (GREY.point(lambda value: 255 * (value > 9)).convert("1"), [[[0, 255]]]),
    # Rounded to the nearest of 8 bits, not cut off.
    "16 bits": (Image.fromarray(np.array([[128, 129, 65535]], dtype=np.uint16)), [[[0, 1, 255]]]),
    # What hides below transparent pixels does not show; opaque ones keep their colour.
    "transparent": (rgba(), [[[255, 10]], [[255, 20]], [[255, 30]]]),
    "palette of greys": (GREY.convert("RGB").quantize(4), [[[7, 200]]]),
    "palette": (Image.new("RGB", (2, 1), (200, 0, 0)).quantize(4), [[[200, 200]], [[0, 0]], [[0, 0]]]),
    "grey with alpha": (Image.new("LA", (1, 1), (90, 255)), [[[90]]]),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_other_than_grey_and_rgb(mode: str, tmp_path: Path) -> None:
    image, expected = MODES[mode]
    image.save(tmp_path / "image.png")
    assert decode(tmp_path / "image.png").tolist() == expected


def test_cmyk_becomes_three_channels(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8)).save(tmp_path / "image.jpg")
    assert decode(tmp_path / "image.jpg").shape == (3, 8, 8)


def numbered(n: int) -> Split:
    """``n`` points whose pixel and label are their number."""
    return Split(x=torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1), y=torch.arange(n))


def order(loader: TensorLoader) -> list[int]:
    """The labels of one epoch; each point comes with its own."""
    batches = list(loader)
    assert all(torch.equal(x.flatten().long(), y) for x, y in batches)
    return [int(label) for _, y in batches for label in y]


class TestTensorLoader:
    """Order and batch sizes."""

    def test_order_is_keyed_by_seed_and_epoch_alone(self) -> None:
        """Not by the batch size or the global state; resuming at an epoch repeats it."""
        state = torch.get_rng_state()
        first = TensorLoader(numbered(50), 8, seed=3)
        epochs = [order(first) for _ in range(3)]
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(99)
        resumed = TensorLoader(numbered(50), 16, seed=3)
        resumed.set_epoch(1)
        assert [order(resumed), order(resumed)] == epochs[1:]
        assert order(TensorLoader(numbered(50), 8, seed=4)) not in epochs

    def test_neighbouring_keys_do_not_share_an_order(self) -> None:
        """Seed 1 at epoch 2 is not seed 2 at epoch 1."""
        orders = []
        for seed, epoch in ((1, 2), (2, 1), (0, 3), (3, 0), (12, 1), (1, 21)):
            loader = TensorLoader(numbered(30), 30, seed=seed)
            loader.set_epoch(epoch)
            orders.append(tuple(order(loader)))
        assert len(set(orders)) == 6

    def test_asking_for_an_iterator_is_an_epoch(self) -> None:
        """Two iterators at once are two epochs, whichever is read first."""
        loader = TensorLoader(numbered(20), 20, seed=0)
        a, b = iter(loader), iter(loader)
        later, earlier = next(b)[1].tolist(), next(a)[1].tolist()
        loader.set_epoch(0)
        assert [earlier, later] == [order(loader), order(loader)]

    def test_without_shuffle(self) -> None:
        """The order of the split, every epoch."""
        loader = TensorLoader(numbered(7), 3, seed=0, shuffle=False)
        assert order(loader) == order(loader) == list(range(7))

    def test_a_last_single_point_joins_the_batch_before(self) -> None:
        """Unless there is none, or single points are what was asked for."""
        cases = {(9, 4): [4, 5], (10, 4): [4, 4, 2], (8, 4): [4, 4], (3, 1): [1, 1, 1]}
        for (n, batch_size), sizes in {**cases, (1, 4): [1], (4, 3): [4], (3, 9): [3]}.items():
            loader = TensorLoader(numbered(n), batch_size, seed=0)
            assert [len(y) for _, y in loader] == sizes
            assert len(loader) == len(sizes)

    def test_refusals(self) -> None:
        """No batch size below 1, no empty split."""
        with pytest.raises(InputError, match="batch size 0"):
            TensorLoader(numbered(3), 0, seed=0)
        with pytest.raises(InputError, match="the split is empty"):
            TensorLoader(numbered(0), 2, seed=0)

    def test_device_and_attributes(self) -> None:
        """Batches lie where asked; the split and batch size can be read."""
        loader = TensorLoader(numbered(4), 2, seed=0, device="meta")
        assert loader.split.x.device.type == "meta"
        assert loader.batch_size == 2
