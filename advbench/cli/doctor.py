"""``advbench doctor``: what works here, what does not, and the command that fixes it."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import json
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from advbench.cli.echo import echo
from advbench.cli.options import FORMAT, Format

if TYPE_CHECKING:
    from importlib.metadata import Distribution

Status = Literal["ok", "absent", "warning", "broken"]
CORE = {
    "torch": "torch",
    "torchvision": "torchvision",
    "typer": "typer",
    "rich": "rich",
    "pandas": "pandas",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "pyyaml": "yaml",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
}
"""Required packages and the module names to import them by."""
OPTIONAL = {
    "torchattacks": ("attacks ta:NAME", 'pip install "advbench[torchattacks]"'),
    "foolbox": ("attacks fb:NAME", 'pip install "advbench[foolbox]"'),
    "pyautoattack": ("attacks aa:NAME", 'pip install "advbench[pyautoattack]"'),
    "robustbench": ("models of its zoo", 'pip install "advbench[robustbench]"'),
    "timm": ("models timm:NAME", 'pip install "advbench[timm]"'),
    "ray": ("sweeps and evaluations on a cluster", 'pip install "advbench[ray]"'),
    "tensorboard": ("advbench run --tensorboard", 'pip install "advbench[tensorboard]"'),
    "wandb": ("advbench run --wandb", 'pip install "advbench[wandb]"'),
    "mlflow": ("advbench run --mlflow, without torchattacks", 'pip install "advbench[mlflow]"'),
}
"""Optional packages: what each is for, and the command that installs it."""
LIGHT = {"mlflow": "mlflow-skinny"}
"""Packages that provide the same module as an optional one, and enough of it."""
ZOO, INTRUDER = "robustbench", "torchattacks"
"""Two packages that both install the folder ``robustbench``, with different files."""
RUNTIME_MODULE = "pkg_resources"
ALIAS = "autoattack"


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``absent`` is for optional packages, ``broken`` means advbench cannot run."""

    name: str
    status: Status
    detail: str
    mend: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a dict of plain values."""
        return asdict(self)


def examine(
    paths: Sequence[str] | None = None, *, load: Callable[[str], Any] = importlib.import_module
) -> list[Finding]:
    """Run every check.

    Args:
        paths: folders to search for installed packages; ``sys.path`` by default.
        load: imports a module by name.
    """
    installed = installed_packages(paths)
    found = [Finding("python", "ok", platform.python_version())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' deprecations do not concern this environment
        found += [_core(package, module, installed, load) for package, module in CORE.items()]
        found += [_optional(package, installed, load) for package in OPTIONAL]
        found += zoo_checks(installed, load)
    if not any(check.status == "broken" for check in found):
        found += list(_registries())
    return found


def works(checks: Iterable[Finding]) -> bool:
    """Whether advbench itself can run."""
    return all(check.status != "broken" for check in checks)


def installed_packages(paths: Sequence[str] | None = None) -> dict[str, Distribution]:
    """Installed distributions by normalised name; of duplicates, the one that Python would import."""
    # Imported here because it takes long, and every command reads this module.
    from importlib.metadata import distributions

    every = distributions() if paths is None else distributions(path=list(paths))
    found: dict[str, Distribution] = {}
    for one in every:
        if name := one.metadata["Name"]:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), one)
    return found


def _core(
    package: str, module: str, installed: dict[str, Distribution], load: Callable[[str], Any]
) -> Finding:
    number = installed[package].version if package in installed else "no version found"
    try:
        loaded = load(module)
    except (Exception, SystemExit) as error:
        together = "torch torchvision" if package == "torchvision" else package
        again = "--force-reinstall " if package in installed else ""
        return Finding(package, "broken", _line(error), f"pip install {again}{together}")
    return Finding(package, "ok", f"{number}, {_devices(loaded)}" if package == "torch" else number)


def _devices(torch: Any) -> str:
    """Describe the devices that torch can use."""
    if torch.cuda.is_available():
        half = "with" if torch.cuda.is_bf16_supported() else "without"
        return f"CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}, {half} bfloat16"
    if torch.backends.mps.is_available():
        return "MPS, no CUDA"
    return "no CUDA device: torch computes on the CPU"


def _optional(package: str, installed: dict[str, Distribution], load: Callable[[str], Any]) -> Finding:
    purpose, command = OPTIONAL[package]
    found = next((name for name in (package, LIGHT.get(package, "")) if name in installed), None)
    if found is None:
        return Finding(package, "absent", f"not installed; needed for {purpose}", command)
    number = installed[found].version
    try:
        load(package)
    except (Exception, SystemExit) as error:
        if (
            package == ZOO
            and isinstance(error, ModuleNotFoundError)
            and error.name in (ALIAS, RUNTIME_MODULE)
        ):
            return Finding(package, "ok", f"{number}, works once {error.name} is installed (see below)")
        return Finding(package, "warning", f"{number} does not load: {_line(error)}")
    return Finding(package, "ok", f"{number}, for {purpose}")


def zoo_checks(
    installed: dict[str, Distribution], load: Callable[[str], Any] = importlib.import_module
) -> list[Finding]:
    """Check what robustbench needs to load: its own files, ``pkg_resources`` and ``autoattack``."""
    found = [collision(installed)]
    if ZOO not in installed:
        return [check for check in found if check]
    try:
        load(RUNTIME_MODULE)
    except Exception as error:
        setuptools = installed["setuptools"].version if "setuptools" in installed else "none"
        detail = f"robustbench imports it, and setuptools 82 removed it (here: {setuptools})"
        detail = detail if isinstance(error, ModuleNotFoundError) else _line(error)
        found.append(Finding(RUNTIME_MODULE, "warning", detail, 'pip install "setuptools<82"'))
    try:
        load(ALIAS)
    except Exception:
        detail = "robustbench imports this name, which no package index has; benchmark() cannot run"
        found.append(Finding(ALIAS, "warning", f"{detail}. The attacks aa:NAME and ours do not need it"))
    return [check for check in found if check]


def collision(installed: dict[str, Distribution]) -> Finding | None:
    """Check whether torchattacks has overwritten files in the folder ``robustbench``.

    Every file that robustbench's RECORD lists is hashed and compared; ``None`` if neither is installed.
    """
    name, zoo, intruder = f"{ZOO} files", installed.get(ZOO), installed.get(INTRUDER)
    theirs = dict(_recorded(intruder, ZOO)) if intruder else {}
    if zoo is None:
        if not theirs:
            return None
        detail = f"the folder {ZOO} is an old copy that comes with {INTRUDER}; it has no zoo"
        return Finding(name, "warning", detail, OPTIONAL[ZOO][1])
    own = dict(_recorded(zoo, ZOO))
    spoilt = sorted(path for path, expected in own.items() if _hash(zoo, path) != expected)
    if spoilt:
        guilty = sum(path in theirs and _hash(zoo, path) == theirs[path] for path in spoilt)
        detail = f"{len(spoilt)} of {len(own)} differ from what {ZOO} installed ({spoilt[0]}, …)"
        if guilty:
            detail += f"; {guilty} were overwritten by {INTRUDER}, which was installed later"
        command = f"pip install --force-reinstall --no-deps {ZOO}=={zoo.version}"
        return Finding(name, "warning", detail, command)
    at_risk = sum(theirs[path] != own[path] for path in theirs if path in own)
    advice = f"; installing {INTRUDER} again would overwrite {at_risk} of them" if at_risk else ""
    return Finding(name, "ok", f"all {len(own)} are as {ZOO} installed them{advice}")


def _recorded(package: Distribution, folder: str) -> Iterator[tuple[str, str]]:
    """Paths below ``folder`` that the package's RECORD lists with their hashes, ``sha256=…``."""
    for row in csv.reader((package.read_text("RECORD") or "").splitlines()):
        if len(row) >= 2 and row[0].startswith(f"{folder}/") and row[1]:
            yield row[0], row[1]


def _hash(package: Distribution, path: str) -> str:
    """The file's hash in RECORD's format; empty if there is no such file."""
    try:
        content = Path(str(package.locate_file(path))).read_bytes()
    except OSError:
        return ""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


def _registries() -> Iterator[Finding]:
    """Check the registries: our attacks and defenses, plug-ins, and adapters of other libraries."""
    from attacks_pool import pool
    from defenses import registry

    for kind, names, problems in (
        ("attacks", pool.names, pool.problems),
        ("defenses", registry.names, registry.problems),
    ):
        try:
            yield Finding(kind, "ok", f"{len(names())} registered")
        except Exception as error:
            yield Finding(kind, "broken", _line(error))
            continue
        for plug_in, cause in sorted(problems.items()):
            yield Finding(f"plug-in {plug_in}", "warning", f"could not be loaded: {cause}")
    yield Finding("adapters", "ok", f"{len(pool.adapters())} attacks of other libraries by name")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def doctor(format: Format = FORMAT) -> None:
    """Say which libraries load here and why others do not; exit code 1 if advbench cannot run."""
    checks = examine()
    if format is Format.json:
        report = {"works": works(checks), "checks": [check.to_json() for check in checks]}
        echo(json.dumps(report, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            echo(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
            if check.mend:
                echo(f"{'':<8} {'':<{width}}  {check.mend}")
    if not works(checks):
        raise typer.Exit(1)
