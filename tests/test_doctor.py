"""The doctor on site-packages made for the test: what it finds, what it advises, when it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from advbench.cli import doctor
from advbench.cli.doctor import Finding, collision, examine, installed_packages, works, zoo_checks
from attacks_pool import pool

OLD, NEW = b"old = True\n", b"new = True\n"


def install(site: Path, name: str, number: str, files: dict[str, bytes]) -> None:
    """As pip does: the files, overwriting what is there, and a dist-info with a RECORD."""
    info = site / f"{name}-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    lines = [f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    lines.append("robustbench/__pycache__/__init__.cpython-311.pyc,,")
    (info / "RECORD").write_text("\n".join(lines) + "\n")


AGAIN = "pip install --force-reinstall --no-deps robustbench==1.1.1"
ZOO = {"robustbench/__init__.py": NEW, "robustbench/utils.py": NEW, "robustbench/data.py": NEW}
ATTACKS = {"torchattacks/__init__.py": b"", "robustbench/__init__.py": OLD, "robustbench/data.py": NEW}


def seen(site: Path) -> Finding | None:
    """What the doctor says of the colliding folder."""
    return collision(installed_packages([str(site)]))


def test_attacks_installed_last_are_found_out(tmp_path: Path) -> None:
    """One command mends it: the zoo's package again, alone, at the version that is there."""
    install(tmp_path, "robustbench", "1.1.1", ZOO)
    install(tmp_path, "torchattacks", "3.5.1", ATTACKS)
    found = seen(tmp_path)
    assert (found.status, found.mend) == ("warning", AGAIN)
    assert found.detail.startswith("1 of 3 differ from what robustbench installed (robustbench/__init__.py,")
    assert "1 were overwritten by torchattacks" in found.detail


def test_zoo_installed_last_is_in_order(tmp_path: Path) -> None:
    """And the danger is named: one file would be overwritten."""
    install(tmp_path, "torchattacks", "3.5.1", ATTACKS)
    install(tmp_path, "robustbench", "1.1.1", ZOO)
    found = seen(tmp_path)
    assert (found.status, found.mend) == ("ok", None)
    said = "all 3 are as robustbench installed them; installing torchattacks again would overwrite 1 of them"
    assert found.detail == said


def test_zoo_alone_and_neither(tmp_path: Path) -> None:
    """Without torchattacks there is nothing to warn of, without both nothing to say."""
    assert seen(tmp_path) is None
    install(tmp_path, "robustbench", "1.1.1", ZOO)
    assert seen(tmp_path) == Finding("robustbench files", "ok", "all 3 are as robustbench installed them")


def test_attacks_alone_bring_a_false_zoo(tmp_path: Path) -> None:
    """``import robustbench`` then works, and is not robustbench."""
    install(tmp_path, "torchattacks", "3.5.1", ATTACKS)
    found = seen(tmp_path)
    assert (found.status, found.mend) == ("warning", 'pip install "advbench[robustbench]"')


@pytest.mark.parametrize("spoil", ["edited", "gone"])
def test_spoilt_files_are_found_without_a_culprit(tmp_path: Path, spoil: str) -> None:
    """A file edited by hand, or deleted."""
    install(tmp_path, "robustbench", "1.1.1", ZOO)
    path = tmp_path / "robustbench" / "utils.py"
    path.write_bytes(b"edited") if spoil == "edited" else path.unlink()
    found = seen(tmp_path)
    assert found.mend == AGAIN
    assert found.detail == "1 of 3 differ from what robustbench installed (robustbench/utils.py, …)"


def loader(*missing: str, broken: str = "") -> Callable[[str], Any]:
    """Imports anything but ``missing``; ``broken`` raises what a false pair of torch packages raises."""

    def load(name: str) -> Any:
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == broken:
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return sys.modules["torch"] if name == "torch" else ModuleType(name)

    return load


def named(checks: list[Finding], name: str) -> Finding:
    """The one check of this name."""
    (found,) = [check for check in checks if check.name == name]
    return found


def test_what_the_zoo_lacks(tmp_path: Path) -> None:
    """``pkg_resources`` can be had again, ``autoattack`` nowhere; neither stops advbench."""
    install(tmp_path, "robustbench", "1.1.1", ZOO)
    install(tmp_path, "setuptools", "82.0.1", {"setuptools/__init__.py": b""})
    installed = installed_packages([str(tmp_path)])
    found = zoo_checks(installed, loader("pkg_resources", "autoattack"))
    assert named(found, "pkg_resources").mend == 'pip install "setuptools<82"'
    assert "(here: 82.0.1)" in named(found, "pkg_resources").detail
    assert named(found, "autoattack").mend is None
    assert works(found)
    assert [check.name for check in zoo_checks(installed, loader())] == ["robustbench files"]
    assert zoo_checks({}, loader("pkg_resources", "autoattack")) == []


def test_optional_libraries_may_be_absent_or_broken(tmp_path: Path) -> None:
    """With the command that installs them, or the cause."""
    install(tmp_path, "foolbox", "3.3.4", {"foolbox/__init__.py": b""})
    found = examine([str(tmp_path)], load=loader(broken="foolbox"))
    assert named(found, "ray").status == "absent"
    assert named(found, "ray").mend == 'pip install "advbench[ray]"'
    assert named(found, "foolbox").status == "warning"
    assert named(found, "foolbox").detail.endswith("RuntimeError: operator torchvision::nms does not exist")
    assert works(found)


def test_broken_core_is_broken(tmp_path: Path) -> None:
    """torch and torchvision that do not go together; nothing further is tried."""
    found = examine([str(tmp_path)], load=loader(broken="torchvision"))
    assert named(found, "torchvision").status == "broken"
    assert named(found, "torchvision").mend == "pip install torch torchvision"
    assert not works(found)
    assert "attacks" not in {check.name for check in found}


def test_plug_ins_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cause; advbench works without them."""
    monkeypatch.setitem(pool.problems, "theirs", "ImportError: no module")
    found = examine([str(tmp_path)], load=loader())
    assert named(found, "plug-in theirs").detail == "could not be loaded: ImportError: no module"
    assert named(found, "plug-in theirs").status == "warning"
    assert named(found, "attacks").detail == f"{len(pool.names())} registered"
    assert works(found)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("absent", 0), ("broken", 1)])
def test_command_prints_and_tells_by_its_exit_code(
    status: Any, code: int, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[str, str]]
) -> None:
    """As lines and as JSON."""
    check = Finding("thing", status, "so it is", "pip install thing")
    monkeypatch.setattr(doctor, "examine", lambda: [check])
    lines = call("doctor", code=code)[0].splitlines()
    assert [" ".join(line.split()) for line in lines] == [f"{status} thing so it is", "pip install thing"]
    report = json.loads(call("doctor", "--format", "json", code=code)[0])
    assert report == {"works": code == 0, "checks": [check.to_json()]}
