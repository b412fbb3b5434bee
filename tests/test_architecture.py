"""The house: which package may import which, one file a method, and what is shipped."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, python

from attacks_pool import pool

OURS = {"advbench", "attacks_pool", "defenses", "leaderboards"}
MAY_IMPORT = {
    "attacks_pool": set(),
    "defenses": {"attacks_pool"},
    "leaderboards": set(),
    "advbench": {"attacks_pool", "defenses", "leaderboards"},
}
# In small letters, and written so that this file does not find itself.
HOSTS = (
    r"pypi\.org|pythonhosted\.or[g]|pytorch\.org/wh[l]|huggingface\.c[o]|hf\.c[o]\b|docker\.i[o]|hub\.docke[r]"
    r"|ghcr\.i[o]|quay\.i[o]|npmjs\.|anaconda\.(org|com)|conda\.anacond[a]|proxy\.golan[g]|artifactor[y]"
    r"|index-ur[l]|extra-inde[x]|jfro[g]|nexu[s]/"
)
HOMES = r"/home/\w+|/users/\w+|/roo[t]/|[a-z]:\\+users|/mnt/\w+|/wor[k]/"


@functools.cache
def imports(path: Path) -> set[str]:
    """The full names that a file imports, anywhere in it: in functions and for type checking too."""
    return set(_imports(path))


def tops(path: Path) -> set[str]:
    """The packages that a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


def _imports(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield argument.value
            elif isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
                yield argument.values[0].value


def python_files(package: str) -> list[Path]:
    """The package's files."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def method_files() -> list[Path]:
    """Files that register an attack or a defense."""
    folders = (ROOT / "attacks_pool" / "attacks", ROOT / "defenses" / "methods")
    candidates = [path for folder in folders for path in folder.glob("*.py")]
    return sorted(
        path for path in candidates if re.search(r"^@register\b", path.read_text("utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize("package", sorted(OURS))
def test_arrows_run_one_way(package: str) -> None:
    """attacks_pool and leaderboards import nothing of ours, defenses attacks_pool, advbench all three."""
    made = set()
    for path in python_files(package):
        assert tops(path) & OURS <= MAY_IMPORT[package] | {package}, path
        assert "tests" not in tops(path), path
        made |= tops(path)
    # The reader sees imports: the permitted ones are made.
    assert MAY_IMPORT[package] <= made


FLOORS = {
    "advbench": "runtime | models data | config evaluation | runs | audit contract | benchmark external"
    " | verify sweep __init__ | cli | __main__",
    "attacks_pool": "errors losses verifier | calling metadata | norms fast | attack adapters | sequences"
    " | registry | __init__ search | rendering | attacks",
    "defenses": "metadata | training | base | registry parts | __init__ methods",
    "leaderboards": "colours errors printable | records | statistics | audits | boards peers"
    " | __init__ pictures site",
}
"""The rooms of each package, from the ground floor up: a room imports from floors below its own."""
MOST_ENTRIES = 16


def room_of(path: Path) -> str:
    """The folder, or the loose file, right below the package that a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1]


def rooms_imported(path: Path) -> set[str]:
    """The rooms of a file's own package that it imports from; ``__init__`` is the package itself."""
    package = path.relative_to(ROOT).parts[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [[*node.module.split("."), name.name] for name in node.names]
        else:
            continue
        for parts in names:
            if parts[0] == package:
                room = parts[1] if len(parts) > 1 else "__init__"
                known = (ROOT / package / room).is_dir() or (ROOT / package / f"{room}.py").exists()
                found.add(room if known else "__init__")
    return found - {room_of(path)}


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_room_imports_from_floors_below(package: str) -> None:
    """Hence there is no circle, not even for types."""
    floors = FLOORS[package].split(" | ")
    floor = {room: number for number, rooms in enumerate(floors) for room in rooms.split()}
    assert {room_of(path) for path in python_files(package)} == set(floor)
    for path in python_files(package):
        for room in rooms_imported(path):
            assert floor[room] < floor[room_of(path)], f"{path.relative_to(ROOT)} imports from {room}"


@pytest.mark.parametrize("package", sorted(OURS))
def test_no_circle_of_files(package: str) -> None:
    """Files of one folder import each other in one direction too."""
    graph: dict[str, set[str]] = {}
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in python_files(package)
    }
    for name, path in files.items():
        named = set(imports(path)) & set(files)
        # A package is only passed through on the way to one of its files.
        through = {other for other in named if any(one.startswith(f"{other}.") for one in named)}
        graph[name] = named - through - {name}
    known: set[str] = set()
    while left := set(graph) - known:
        free = {name for name in left if graph[name] <= known}
        assert free, {name: sorted(graph[name] - known) for name in left}
        known |= free


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_name_means_one_thing(package: str) -> None:
    """No two modules of a package share a stem; files named after a command or an attack are apart."""
    stems: dict[str, Path] = {}
    for path in python_files(package):
        named_for_users = {"cli", "attacks"} & set(path.relative_to(ROOT).parts)
        if path.stem not in ("__init__", "__main__") and not named_for_users:
            assert path.stem not in stems, f"{path} and {stems[path.stem]}"
            stems[path.stem] = path


def test_no_two_classes_share_a_name() -> None:
    """Over all packages, private ones apart."""
    classes: dict[str, Path] = {}
    for package in sorted(OURS):
        for path in python_files(package):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    assert node.name not in classes, f"{node.name}: {path} and {classes[node.name]}"
                    classes[node.name] = path


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_is_seen_at_a_glance(package: str) -> None:
    """Its folder has few entries, and advbench no loose files."""
    entries = {path.name for path in (ROOT / package).iterdir() if path.name != "__pycache__"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    if package == "advbench":
        loose = {name for name in entries if name.endswith(".py")}
        assert loose == {"__init__.py", "__main__.py"}


def test_leaderboards_run_no_model() -> None:
    """Nothing there can."""
    for path in python_files("leaderboards"):
        assert not tops(path) & {"torch", "torchvision", "sklearn"}


def test_no_list_names_the_methods() -> None:
    """Registries find files: nothing but another method, or a test, imports one."""
    files = method_files()
    methods = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert {"attacks_pool.attacks.pgd", "defenses.methods.air"} <= methods
    for package in sorted(OURS):
        for path in set(python_files(package)) - set(files):
            assert not methods & imports(path), path


def test_a_method_is_found_by_its_name() -> None:
    """An attack's file is named after it or its family of norms: pgd-l2 is in pgd.py."""
    for name in pool.names():
        module, _, _ = pool.entry(name).source.partition(":")
        stem = module.rpartition(".")[2].replace("_", "-")
        info = pool.info(name)
        assert name == stem or name.startswith(f"{stem}-") or stem in (info.family, f"{info.family}s"), name


def test_one_new_file_is_enough(tmp_path: Path) -> None:
    """An attack and a defense in files of their own are found without any other change."""
    for package in ("attacks_pool", "defenses"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    attack = (ROOT / "attacks_pool" / "attacks" / "fgsm.py").read_text("utf-8")
    text = re.sub(r'name="fgsm"', 'name="brand-new"', attack).replace("def fgsm(", "def brand_new(")
    (tmp_path / "attacks_pool" / "attacks" / "brand_new.py").write_text(text)
    defense = (ROOT / "defenses" / "methods" / "standard.py").read_text("utf-8")
    text = defense.replace('name="standard"', 'name="novel"').replace("class Standard", "class Novel")
    (tmp_path / "defenses" / "methods" / "novel.py").write_text(text)
    code = (
        "from attacks_pool import pool; from defenses import Novel, registry;"
        "print(pool.get('brand-new', eps=0.1).text, registry.resolve('novel')[0] is Novel)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout == "brand-new:eps=0.1 True\n", done.stderr


RECORDS = ROOT / "leaderboards" / "results"


def test_four_packages_are_shipped() -> None:
    """Exactly; the tests stand beside them and are never installed."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    finder = project["tool"]["setuptools"]["packages"]["find"]
    where, exclude = str(ROOT / finder.get("where", ["."])[0]), finder.get("exclude", [])
    # In a process of its own: setuptools refuses to be imported where distutils came first, by another test.
    asked = f"{where!r}, {exclude!r}, {finder['include']!r}"
    code = f"import setuptools; print(*setuptools.find_packages({asked}))"
    found = python("-c", code).stdout.split()
    assert {name.partition(".")[0] for name in found} == OURS
    folders = {path.parent for package in OURS for path in python_files(package)}
    assert {str(folder.relative_to(ROOT)).replace("/", ".") for folder in folders} == set(found)
    data = project["tool"]["setuptools"]["package-data"]
    for package in OURS:
        shipped = {path for pattern in data[package] for path in (ROOT / package).glob(pattern)}
        # Whatever is no code goes along: the mark of a typed package, and what the pages are made of;
        # published records stay behind.
        there = {path for path in (ROOT / package).rglob("*") if path.is_file()}
        there = {path for path in there if RECORDS not in path.parents}
        assert {path for path in there if path.suffix not in (".py", ".pyc")} == shipped
        assert ROOT / package / "py.typed" in shipped
    assert project["project"]["scripts"] == {"advbench": "advbench.cli.main:main"}


def tracked() -> list[Path]:
    """The files of the repository, those not yet committed too."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def test_no_file_names_a_package_host_or_a_home() -> None:
    """Where packages come from, and where somebody's files are, is the user's own affair."""
    pattern = re.compile(f"{HOSTS}|{HOMES}".encode())
    for sample in ("https://pypi.or" + "g/x", "/home" + "/someone/x", "C:" + "\\Users\\x", "/roo" + "t/x"):
        assert pattern.search(sample.lower().encode()), sample
    files = tracked()
    assert ROOT / "pyproject.toml" in files
    for path in files:
        found = pattern.search(path.read_bytes().lower())
        assert found is None, f"{path.relative_to(ROOT)}: {found and found.group()}"


def test_no_search_shares_code_with_the_verifier() -> None:
    """The verifier imports nothing of ours, and nothing else in the package imports it."""
    package = ROOT / "attacks_pool"
    verifier = package / "verifier.py"
    assert not tops(verifier) & OURS
    inside = "attacks_pool.verifier."
    offered = {"ModelState", "Verdict", "verify", "verifier"}
    forbidden = {"attacks_pool.verifier", *(f"attacks_pool.{name}" for name in offered)}
    for path in python_files("attacks_pool"):
        if path not in (verifier, package / "__init__.py"):
            found = {name for name in imports(path) if name in forbidden or name.startswith(inside)}
            assert not found, (path, found)


def test_attacks_run_without_the_verifier() -> None:
    """Every attack is imported, and one has searched a copy of a model, before anything loads it."""
    code = (
        "import sys, torch; from torch import nn; from attacks_pool import pool;"
        "from attacks_pool.fast.copy import search_model; import attacks_pool.fast.follow;"
        "import attacks_pool.adapters.peer;"
        "[pool.entry(name).function for name in pool.names()];"
        "m = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval();"
        "x, y = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long);"
        "s = search_model(m, x, reduced=False); pool.get('pgd', eps=0.1)(s, x, y, early_stop=True);"
        "print(type(s).__name__, 'attacks_pool.verifier' in sys.modules)"
    )
    done = python("-c", code)
    assert done.stdout == "SearchModel False\n", done.stderr


def test_a_moved_module_is_still_found() -> None:
    """Plug-ins that were begun with version 0.1 have tests that import ``advbench.plugins``."""
    former = importlib.import_module("advbench.plugins")
    assert former.check_defense is importlib.import_module("advbench.contract").check_defense
