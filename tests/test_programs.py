"""Files that torch turns into code: refused in one line before torch opens them, wherever one is named."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from advbench import evaluate_model
from advbench.cli.main import invoke
from advbench.data import DataSet
from advbench.external import Source, load_foreign
from advbench.external.model_files import _quiet
from advbench.models.weights import read_state
from attacks_pool import InputError
from leaderboards import json_bytes, pack, write_checksums

Captured = pytest.CaptureFixture[str]
EVAL = ["--attacks", "fgsm", "--points", "20", "--threads", "1", "--surrogate", "none", "--device", "cpu"]
FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class Writes(nn.Module):
    """A script that makes a file of its author's choice when it is asked for logits."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.inner = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        written = torch.from_file(self.place, True, 8)
        return self.inner(x.flatten(1)) + 0 * written.sum()


def model() -> nn.Module:
    """A plain classifier of digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def script(path: Path, place: Path) -> None:
    """A TorchScript file that writes to ``place``."""
    with _quiet():
        torch.jit.script(Writes(str(place))).save(str(path))


def plain_script(path: Path, _place: Path) -> None:
    """A TorchScript file that does nothing but its work."""
    with _quiet():
        torch.jit.script(model()).save(str(path))


def program(path: Path, _place: Path) -> None:
    """An exported program."""
    with _quiet():
        torch.export.save(torch.export.export(model(), (torch.zeros(4, 1, 8, 8),)), path)


def opaque(path: Path, place: Path) -> None:
    """One with a constant that is a pickle."""
    program(path, place)

    def doctor(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("constants_config.json"))
        tree = json.loads(members[name])
        tree["config"]["opaque_obj_0"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        members[name] = json.dumps(tree).encode()
        members[f"{Path(name).parent}/opaque_obj_0"] = pickle.dumps(Bomb(place))

    rewrite(path, doctor)


def library(path: Path, place: Path) -> None:
    """One with a compiled library beside its program."""
    program(path, place)

    def doctor(members: dict[str, bytes]) -> None:
        root = next(iter(members)).partition("/")[0]
        members[f"{root}/data/aotinductor/model/model.so"] = b"\x7fELF"

    rewrite(path, doctor)


def package(path: Path, place: Path) -> None:
    """An archive of torch.package: Python files and a pickle."""
    with torch.package.PackageExporter(path) as exporter:
        exporter.save_source_string("evil", f"open({str(place)!r}, 'w')")
        exporter.save_pickle("model", "model.pkl", torch.zeros(1))


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """The same archive with other members."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)


PROGRAMS: dict[str, Callable[[Path, Path], None]] = {
    "script": script,
    "plain script": plain_script,
    "program": program,
    "opaque": opaque,
    "library": library,
    "package": package,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind, by name; those that run code touch ``fired`` in it."""
    folder = tmp_path_factory.mktemp("programs")
    for kind, make in PROGRAMS.items():
        make(folder / kind, folder / "fired")
    return folder


@pytest.fixture
def unopened(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch must open nothing, and no code may run."""
    (made / "fired").unlink(missing_ok=True)
    for module, name in ((torch.jit, "load"), (torch.export, "load"), (torch, "load")):
        monkeypatch.setattr(module, name, opened)
    yield
    assert not (made / "fired").exists()


def opened(*_: Any, **__: Any) -> NoReturn:
    """Stands for what torch opens files with."""
    pytest.fail("torch opened it")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a factory in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made_here.py").write_text(FACTORY)
    return tmp_path


def line(capsys: Captured) -> str:
    """What was said: one line on stderr."""
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    return found.err


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("kind", ["script", "plain script", "program", "opaque", "library"])
def test_a_model_is_not_opened_without_trust(kind: str, made: Path, place: Path, capsys: Captured) -> None:
    for name in ("net.pt", "net.pth", "net.ts", "net.pt2"):
        shutil.copy(made / kind, place / name)
        assert invoke(["eval", "--model", name, *EVAL]) == 2
        said = line(capsys)
        assert "program, and loading it can run any code: add --trust" in said
        assert "--weights FILE.safetensors" in said
    assert not (place / "runs").exists()


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("name", ["w.pt", "w.pt2", "w.bin", "w.safetensors", "w"])
@pytest.mark.parametrize("kind", PROGRAMS)
def test_weights_are_no_programs_whatever_they_are_called(
    kind: str, name: str, made: Path, place: Path, capsys: Captured
) -> None:
    shutil.copy(made / kind, place / name)
    for more in ([], ["--trust"]):
        assert invoke(["eval", "--model", "made_here:make", "--weights", name, *EVAL, *more]) == 2
        said = line(capsys)
        assert f"weights {name} " in said
        assert "a program can run any code" in said
        assert "--trust" in said
    assert not (place / "runs").exists()


@pytest.mark.usefixtures("unopened")
def test_workers_are_not_asked_either(made: Path, place: Path) -> None:
    """Refused before any process starts."""
    shutil.copy(made / "opaque", place / "net.pt2")
    with pytest.raises(InputError, match="add --trust"):
        evaluate_model("net.pt2", attacks="fgsm", points=20, workers=2, runs_dir=place / "runs")


@pytest.mark.parametrize("kind", ["script", "opaque"])
def test_these_files_do_run_code(kind: str, digits: DataSet, made: Path, place: Path) -> None:
    """Where they are trusted: otherwise the tests above would show nothing."""
    (made / "fired").unlink(missing_ok=True)
    shutil.copy(made / kind, place / "net.pt")
    with contextlib.suppress(InputError):
        load_foreign(Source("net.pt", trust=True), digits)
    assert (made / "fired").exists()


def test_a_trusted_program_is_loaded_by_what_it_is(digits: DataSet, made: Path, place: Path) -> None:
    """By its content, not by its name."""
    for kind, name in (("program", "net.pt"), ("plain script", "net.ts")):
        shutil.copy(made / kind, place / name)
        assert load_foreign(Source(name, trust=True), digits).file == Path(name)


def test_bare_pickles_and_tars_run_nothing(place: Path) -> None:
    """Formats older than torch's archive."""
    state = model().state_dict()
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    assert read_state(Path("old.pt")).keys() == state.keys()
    torch.save(Bomb(place / "fired"), "bomb.pt", _use_new_zipfile_serialization=False)
    (place / "bare.pt").write_bytes(pickle.dumps(Bomb(place / "fired")))
    with tarfile.open("tar.pt", "w") as archive:
        archive.add("bare.pt", "pickle")
        for name in ("sys_info", "storages", "tensors"):
            archive.add("bare.pt", name)
    for name in ("bomb.pt", "bare.pt", "tar.pt"):
        with pytest.raises(InputError, match="other pickles are not read"):
            read_state(Path(name))
    assert not (place / "fired").exists()


def test_state_dicts_that_unfold(place: Path) -> None:
    """torch.save compresses nothing; an archive that was compressed may be far larger than its file."""
    torch.save({"weight": torch.zeros(10**6)}, "state.pt")
    with zipfile.ZipFile("state.pt") as old, zipfile.ZipFile("small.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert read_state(Path("state.pt"))["weight"].shape == (10**6,)
    with pytest.raises(InputError, match="hold compressed members"):
        read_state(Path("small.pt"))
    (place / "cut.pt").write_bytes((place / "state.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.pt cannot be read: a damaged archive"):
        read_state(Path("cut.pt"))


def test_records_of_programs_need_trust(
    made: Path, place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``verify`` and ``accept``, whose weights are a file that the sender of the record may have sent too."""
    shutil.copy(made / "plain script", place / "net.pt")
    run = evaluate_model("net.pt", attacks="fgsm", points=20, surrogate="none", threads=1, trust=True)
    pack(run.path, place / "run.zip")
    verify = ["verify", str(run.path), "--weights", "net.pt"]
    accept = ["accept", "run.zip", "--runs-dir", "theirs", "--weights", "net.pt"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", opened)
        for command in (verify, accept):
            assert invoke(command) == 2
            assert "add --trust" in line(capsys)
    assert not (place / "theirs").exists()
    for command in (verify, accept):
        assert invoke([*command, "--trust"]) == 0


@pytest.mark.usefixtures("unopened")
def test_a_stranger_s_program_is_not_accepted(made: Path, place: Path, capsys: Captured) -> None:
    """The record of a plain network whose weights are said to be a program's."""
    shutil.copy(made / "opaque", place / "evil.pt2")
    run = evaluate_model("made_here:make", attacks="fgsm", points=20, surrogate="none", threads=1)
    tree = json.loads((run.path / "record.json").read_text())
    tree["stages"][0]["spec"] |= {"model": "evil.pt2", "weights": "evil.pt2"}
    (run.path / "record.json").write_bytes(json_bytes(tree))
    write_checksums(run.path, (run.path / "record.json").read_bytes())
    pack(run.path, place / "run.zip")
    assert invoke(["accept", "run.zip", "--runs-dir", "theirs", "--weights", "evil.pt2"]) == 2
    assert "'evil.pt2' is an exported program, and loading it can run any code: add --trust" in line(capsys)
    assert not (place / "theirs").exists()
