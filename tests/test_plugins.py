"""Defenses of strangers: the contract on faulty ones, a new package, entry points, an installation."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.cli.main import invoke
from advbench.contract import CONTRACT, Check, check_defense, find_defense, keeping, write_package
from advbench.contract.compare import BrokenPromiseError
from advbench.contract.trial import Images, Trial
from attacks_pool import InputError
from defenses import Defense, DefenseInfo, Stage, registry

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tests" / "plugin_package"
INFO = DefenseInfo(name="planted", paper=None, regimes=("continual",))


def planted(**changed: Any) -> DefenseInfo:
    """Metadata of a faulty defense."""
    return INFO.model_copy(update=changed)


class Honest(Defense):
    """Plain training: cheap, and as it should be."""

    info = INFO

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:  # noqa: ARG002 - plain training
        """CE(f(x), y)."""
        return F.cross_entropy(self(x), y)


class LearnsFromTests(Honest):
    """Makes the answers to whatever forward was last shown in eval mode more certain."""

    shown: Tensor | None = None
    studied: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.shown = x.detach().clone()
        return super().forward(x)

    def begin(self, stage: Stage) -> None:  # noqa: ARG002
        self.studied = self.shown

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        loss = super().loss(x, y, stage)
        if self.studied is not None:
            loss = loss - 0.1 * self(self.studied).softmax(1).square().sum(1).mean()
        return loss

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "studied": self.studied}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.studied = state["studied"]


class Grows(Honest):
    """Keeps every batch."""

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.seen: list[Tensor] = []

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        self.seen.append(x.clone())
        return super().loss(x, y, stage)


class GrowsInItsClass(Honest):
    """Keeps every batch where all of its instances share it."""

    seen: ClassVar[list[Tensor]] = []

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        self.seen.append(x.clone())
        return super().loss(x, y, stage)


class ForgetsABuffer(Honest):
    """Uses a running mean that neither the weights nor ``spec`` have."""

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return super().forward(x - self.mean)


class ForgetsALayer(Honest):
    """Grows a layer at its first stage that ``load_spec`` does not rebuild."""

    def begin(self, stage: Stage) -> None:
        if stage.index == 1:
            self.scale = nn.ParameterDict({"logits": nn.Parameter(torch.ones(()))})

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.scale["logits"] if hasattr(self, "scale") else 1)


class ForgetsItsTeacher(Honest):
    """Pulls towards the network of the stage before, and loses that where it is interrupted."""

    old: Tensor | None = None

    def begin(self, stage: Stage) -> None:
        if stage.index > 1:
            self.old = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        loss = super().loss(x, y, stage)
        if self.old is not None:
            now = torch.cat([parameter.flatten() for parameter in self.model.parameters()])
            loss = loss + 0.1 * (now - self.old).square().sum()
        return loss


def faulty(name: str, failing: str, reason: str, **changed: Any) -> tuple[type[Defense], set[str], str]:
    """``Honest`` with other attributes, which break one promise."""
    return type(name, (Honest,), changed), {failing}, reason


def on(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """``forward`` of changed images."""
    return {"forward": lambda self, x: Honest.forward(self, change(x))}


def losing(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """``loss`` of changed images."""
    return {"loss": lambda self, x, y, stage: Honest.loss(self, change(x), y, stage)}


def unseeded(x: Tensor) -> Tensor:
    """Noise from a generator that nothing determines."""
    generator = torch.Generator()
    generator.seed()
    return x + 0.1 * torch.rand(x.shape, generator=generator)


def talkative(self: Defense, x: Tensor) -> Tensor:
    """Logits that depend on the neighbours in the batch."""
    logits = Honest.forward(self, x)
    return logits + logits.mean(0)


def remembering(self: Any, x: Tensor) -> Tensor:
    """Remembers what it was shown, and does nothing with it yet."""
    if not self.training:
        self.shown = [x.detach().clone()]
    return Honest.forward(self, x)


def of_one_attack(self: Defense, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
    """Cannot train against several."""
    (_,) = stage.attacks
    return Honest.loss(self, x, y, stage)


def the_same(self: Any, name: str, value: Any) -> None:
    """Draws as if its seed were always the same."""
    Defense.__setattr__(self, name, 0 if name == "seed" else value)


def padded(self: Defense, x: Tensor) -> Tensor:
    """A class more than there are."""
    return F.pad(Honest.forward(self, x), (0, 1))


def grey(x: Tensor) -> Tensor:
    """One channel of an image."""
    return x.view(-1, 1, *x.shape[2:])


def square(x: Tensor) -> Tensor:
    """The same images, which must be square."""
    return x + 0 * (x - x.transpose(2, 3))


def noisy(x: Tensor) -> Tensor:
    """Noise from the global generator."""
    return x + 0.01 * torch.randn_like(x)


def seeding(self: Defense, _stage: Stage) -> None:
    """Resets everybody's random numbers."""
    torch.manual_seed(self.seed)


def towards_zero(self: Defense, x: Tensor, _y: Tensor, _stage: Stage) -> Tensor:
    """Trains towards zero logits."""
    return self(x).square().mean()


class KeepsAnObject(Honest):
    """Its training state holds something that no file can."""

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "helper": object()}


TWO_REGIMES, NAMESAKE = planted(regimes=("continual", "joint")), planted(name="air")


FAULTS: list[tuple[type[Defense], set[str], str]] = [
    (LearnsFromTests, {"test data"}, "fit of stage 1 sends 24 of 24 test images"),
    (Grows, {"memory"}, "memory grows: "),
    (GrowsInItsClass, {"memory"}, "memory grows: "),
    (ForgetsABuffer, {"save and load", "resume"}, "logits after loading differ by up to "),
    (ForgetsALayer, {"save and load", "resume"}, "the saved weights do not fit the model"),
    (KeepsAnObject, {"resume"}, "training_state() cannot be saved: state.training.helper is a"),
    (ForgetsItsTeacher, {"resume"}, "training_state() and load_training_state() must keep"),
    faulty("KeepsTests", "test data", "self.shown[0] holds ", forward=remembering),
    faulty("Unseeded", "determinism", "trained twice with seed 5", **losing(unseeded)),
    faulty("Seedless", "determinism", "seeds 5 and 6 give the same weights", __setattr__=the_same),
    faulty("OneLogitMore", "output shapes", "expected logits (12, 3), got (12, 4)", forward=padded),
    faulty("GreyOnly", "output shapes", "3×8×8 images of 3 classes: ", **on(grey)),
    faulty("SquaresOnly", "other images", "1×8×12 images of 3 classes: RuntimeError: ", **losing(square)),
    faulty(
        "Detached", "input gradients", "logits have no gradient to the image: forward", **on(Tensor.detach)
    ),
    faulty("SeedsTheProcess", "global state", "it changes torch's random state", begin=seeding),
    faulty("Darkens", "training data", "training writes into the batches", **losing(lambda x: x.mul_(0.99))),
    faulty("SecretlyRandom", "eval mode", "two answers to the same images differ", **on(noisy)),
    faulty("Talkative", "eval mode", "logits depend on the rest of its batch", forward=talkative),
    faulty("LearnsNothing", "learns", "robust accuracy ", loss=towards_zero),
    faulty("OneAttackOnly", "regimes", "ValueError: too many values", info=TWO_REGIMES, loss=of_one_attack),
    faulty("Namesake", "metadata", "the name 'air' is taken by defenses.methods.air:AIR", info=NAMESAKE),
]
"""Each with the promises that it breaks, and the reason given for the one whose name sorts last."""
"""Each with the promises that it breaks, and the reason given for the one whose name sorts last."""


def by_name(checks: list[Check]) -> dict[str, Check]:
    """Checks by the promise that they are of."""
    return {check.name: check for check in checks}


@pytest.mark.quick(
    r"(LearnsFromTests|Unseeded|ForgetsALayer|ForgetsItsTeacher|Detached|LearnsNothing|Namesake)-.*"
)
@pytest.mark.parametrize(
    ("kind", "failing", "reason"), FAULTS, ids=lambda given: getattr(given, "__name__", "")
)
def test_planted_faults_are_named(kind: type[Defense], failing: set[str], reason: str) -> None:
    """The promise that is broken fails with its reason in one line; what does not build on it holds."""
    checks = by_name(check_defense(kind))
    assert {name for name, check in checks.items() if check.status == "fails"} == failing, checks
    assert reason in checks[max(failing)].detail
    assert all("\n" not in check.detail for check in checks.values())
    needs = {promise.name: promise.needs for promise in CONTRACT}
    for name, check in checks.items():
        assert (check.status == "not run") == any(not checks[need].holds for need in needs[name])


def test_the_honest_one_holds() -> None:
    """Promise after promise is tried, and ``progress`` hears of each before."""
    heard: list[str] = []
    checks = check_defense(Honest, progress=heard.append)
    assert all(check.holds for check in checks), checks
    assert heard == [check.name for check in checks] == [promise.name for promise in CONTRACT]


class Widens(Honest):
    """Gets something of one size at each stage, or of sizes that grow."""

    def begin(self, stage: Stage) -> None:
        kept = getattr(self, "kept", [])
        self.kept = [*kept, torch.zeros(500 * stage.index**self.power)]

    power = 0


@pytest.mark.parametrize(
    ("kind", "declared", "power", "holds"),
    [
        (Grows, {"memory": 1000}, 0, True),
        (Grows, {"memory": 20}, 0, False),
        (Widens, {}, 0, False),
        (Widens, {"grows": True}, 0, True),
        (Widens, {"grows": True}, 2, False),
    ],
)
def test_growth_that_is_declared(
    kind: type[Defense], declared: dict[str, Any], power: int, holds: bool
) -> None:
    """Stored samples up to the number that the metadata names; parameters by the same share each stage."""
    declaring = type("Declaring", (kind,), {"info": planted(**declared), "power": power})
    if holds:
        assert "kB after stages 1 to 4" in keeping.memory(Trial(declaring, {}))
    else:
        with pytest.raises(BrokenPromiseError, match="memory grows: "):
            keeping.memory(Trial(declaring, {}))


def test_frozen_layers_are_resumed_too() -> None:
    """What a stage freezes still has the gradients of the stage before, which no clipping may count."""

    class Freezes(Honest):
        def begin(self, stage: Stage) -> None:
            self.model.get_submodule("features").requires_grad_(stage.index == 1)

    assert "equal bit for bit" in keeping.resume(Trial(Freezes, {}))


def test_parameters_and_networks_of_ones_own() -> None:
    """Defenses that need a value, and those that are for some kind of network."""

    class Needy(Honest):
        def __init__(self, model: nn.Module, *, layer: str, seed: int = 0) -> None:
            super().__init__(model, seed=seed)
            self.layer = layer
            self.found = dict(model.named_children())[layer]

    made: list[Images] = []

    def network(images: Images) -> nn.Module:
        made.append(images)
        pixels = images.channels * images.height * images.width
        return nn.Sequential(OrderedDict(flat=nn.Flatten(), linear=nn.Linear(pixels, images.classes)))

    with pytest.raises(InputError, match="needs a value for 'layer'"):
        check_defense(Needy)
    checks = by_name(check_defense(Needy, parameters={"layer": "linear"}, network=network))
    assert checks["output shapes"].holds
    assert {images.channels for images in made} == {1, 3}


@pytest.mark.parametrize("given", [nn.Linear, "air", Defense], ids=str)
def test_what_is_no_defense_is_refused(given: Any) -> None:
    """By one error: nothing is tried on it."""
    with pytest.raises(InputError, match=r"is not a subclass of defenses.Defense|has no info = DefenseInfo"):
        check_defense(given)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new package ``my-defense``, as the current directory."""
    write_package("my-defense", tmp_path)
    folder = tmp_path / "my-defense"
    monkeypatch.chdir(folder)
    return folder


def test_new_writes_a_small_package(tmp_path: Path, capsys: Any) -> None:
    """Four files, named one a line, in a directory that is made; nothing else is left there."""
    assert invoke(["defenses", "new", "my-defense", "--dir", str(tmp_path / "deep" / "er")]) == 0
    folder = tmp_path / "deep" / "er" / "my-defense"
    files = ["pyproject.toml", "my_defense.py", "test_my_defense.py", "README.md"]
    assert capsys.readouterr().out.splitlines() == [str(folder / file) for file in files]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert [path.name for path in folder.parent.iterdir()] == ["my-defense"]
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    entries = project["project"]["entry-points"]["advbench.defenses"]
    assert entries == {"my-defense": "my_defense:MyDefense"}


def test_a_new_package_keeps_the_contract(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own test passes, and its class is found from the current directory."""
    try:
        assert find_defense("my_defense:MyDefense").info.name == "my-defense"
        monkeypatch.syspath_prepend(written)
        tests = vars(importlib.import_module("test_my_defense"))
        (test,) = (value for name, value in tests.items() if name.startswith("test_"))
        test()
    finally:
        for name in ("my_defense", "test_my_defense"):
            sys.modules.pop(name, None)


def test_check_says_what_fails(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, or JSON; exit code 1 where a promise is broken, with its reason."""
    (tmp_path / "faulty_one.py").write_text(
        "from defenses import DefenseInfo\nfrom defenses.methods.standard import Standard\n\n\n"
        "class Faulty(Standard):\n"
        '    info = DefenseInfo(name="faulty", paper=None, regimes=("continual",))\n\n'
        "    def forward(self, x):\n        return super().forward(x.detach())\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        assert invoke(["defenses", "check", "faulty_one:Faulty"]) == 1
        out = capsys.readouterr().out
        assert "logits have no gradient to the image" in out
        assert out.splitlines()[-1].startswith("faulty keeps 2 of 15 promises (")
        assert out.splitlines()[-1].endswith("it fails: input gradients")
        assert invoke(["defenses", "check", "faulty_one:Faulty", "--format", "json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert (report["defense"], report["holds"]) == ("faulty", False)
        assert [check["name"] for check in report["checks"]] == [promise.name for promise in CONTRACT]
    finally:
        sys.modules.pop("faulty_one", None)


def test_check_of_a_registered_name(capsys: Any) -> None:
    """Exit code 0 where everything holds; ``--set`` reaches the defense."""
    assert invoke(["defenses", "check", "standard"]) == 0
    assert "standard keeps 15 of 15 promises" in capsys.readouterr().out
    assert invoke(["defenses", "check", "at", "--set", "mix=sometimes"]) == 2
    assert capsys.readouterr().err.startswith("error: mix=sometimes is not valid for at: ")


MISTAKES = {
    "new": "Missing argument 'name'",
    "new My-Defense": "'My-Defense' is no name for a defense: lower-case letters, digits, single hyphens",
    "new my_defense": "'my_defense' is no name for a defense",
    "new 2nd": "'2nd' is no name for a defense",
    "new ../up": "'../up' is no name for a defense",
    "new class": "'class' is a Python keyword: its module could not be imported",
    "new at": "the name 'at' is taken: advbench defenses at describes it",
    "new joint": "the name 'joint' is taken",
    "new check": "'check' is a command of advbench defenses",
    "new json": "a module 'json' is installed already: choose another name",
    "new defenses": "a module 'defenses' is installed already",
    "new a-i-r": "the class name 'AIR', which 'a-i-r' would get, is taken",
    "new brand-new --dir file/below": "file/below/brand-new cannot be written: ",
    "new there": "there exists already: choose another name or --dir",
    "check": "Missing argument 'defense'",
    "check aer": "unknown defense 'aer': did you mean 'air'?",
    "check no_such_module:Thing": "no module 'no_such_module', neither installed nor below the current",
    "check broken:Thing": "defense 'broken:Thing': importing broken failed: ModuleNotFoundError: ",
    "check twice:Thing": "importing twice failed: InputError: defense 'air' is registered twice",
    "check json:Decoder": "unknown defense class 'Decoder'",
    "check json:JSONDecoder": "defense 'json:JSONDecoder' is a subclass of object, expected one of ",
    "check json:loads": "defense 'json:loads' is function, expected a class",
    "check a/b:c": "defense 'a/b:c' is not of the form package.module:Class",
    "check defenses:Defense": "defense 'defenses:Defense' has no info = DefenseInfo(...)",
    "check at --set mix": "--set takes key=value, not 'mix'",
    "check at --format xml": "'--format': ",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line(
    arguments: str, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.py").write_text("import no_such_package")
    (tmp_path / "twice.py").write_text(
        "from defenses import DefenseInfo, register\nfrom defenses.methods.standard import Standard\n\n\n"
        "@register\nclass Thing(Standard):\n"
        '    info = DefenseInfo(name="air", paper=None, regimes=("joint",))\n'
    )
    before = sorted(tmp_path.rglob("*"))
    assert invoke(["defenses", *arguments.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert MISTAKES[arguments] in err
    assert sorted(tmp_path.rglob("*")) == before


def run_python(*arguments: str, python: str | Path = sys.executable, path: str = "", **more: Any) -> Any:
    """Python in a process of its own that imports this checkout; ``path`` comes after it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), path]))}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(python), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **more)


def install(site: Path, package: str, entry: str, code: str) -> None:
    """A package with an entry point, as an installer would leave it."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[advbench.defenses]\n{entry}\n")
    (site / f"{package}.py").write_text(code)


def test_strangers_packages_break_nothing(tmp_path: Path) -> None:
    """An import error, a wrong base, a taken name: each is named in one line, and the rest goes on."""
    head = "from defenses import DefenseInfo\nfrom defenses.methods.standard import Standard\n\n\n"
    info = "    info = DefenseInfo(name={!r}, paper=None, regimes=('joint',))\n"
    install(tmp_path, "lost", "lost-one = lost:Lost", "import no_such_package")
    install(tmp_path, "wrong", "wrong-base = wrong:Wrong", "class Wrong:\n    pass\n")
    install(tmp_path, "namesake", "air = namesake:Same", f"{head}class Same(Standard):\n{info.format('air')}")
    install(tmp_path, "fine", "fine = fine:Fine", f"{head}class Fine(Standard):\n{info.format('fine')}")
    listed = run_python("-m", "advbench", "defenses", "--format", "json", path=str(tmp_path), cwd=tmp_path)
    assert listed.returncode == 0
    found = {entry["name"]: entry["source"] for entry in json.loads(listed.stdout)}
    assert set(found) == {*registry.names(), "fine"}
    assert found["air"] == "defenses.methods.air:AIR"
    assert listed.stderr.splitlines() == [
        "warning: defense plug-in 'air' could not be loaded: InputError: defense 'air' is registered twice: "
        "by defenses.methods.air:AIR and namesake:Same (package namesake)",
        "warning: defense plug-in 'lost-one' could not be loaded: ModuleNotFoundError: No module named "
        "'no_such_package' (package lost)",
        "warning: defense plug-in 'wrong-base' could not be loaded: InputError: <class 'wrong.Wrong'> is not "
        "a subclass of defenses.Defense (package wrong)",
    ]


def usable() -> str:
    """Why no second environment can be made here; empty where one can."""
    missing = [name for name in ("venv", "pip", "setuptools") if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(missing)}" if missing else ""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a second environment's Python: it borrows this one's packages, and has the plug-in installed."""
    if reason := usable():
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("second")
    made = run_python("-m", "venv", "--without-pip", str(place / "venv"))
    if made.returncode:
        pytest.skip(f"venv cannot make an environment here: {made.stderr.strip()}")
    python = place / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    scheme = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(run_python("-c", scheme, python=python).stdout.strip())
    borrowed = dict.fromkeys([sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]])
    (site / "borrowed.pth").write_text("\n".join([str(ROOT), *borrowed]) + "\n")
    # Copied: building writes beside the sources.
    source = place / "source"
    source.mkdir()
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(PACKAGE)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    pip = ("-m", "pip", "--python", str(python), "install", *offline, str(source))
    installed = run_python(*pip)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert (site / "advbench_weight_averaging" / "method.py").is_file()
    return lambda *arguments: run_python("-m", "advbench", *arguments, python=python, cwd=place)


@pytest.mark.slow
def test_an_installed_plug_in_is_trained_and_ranked(environment: Callable[..., Any]) -> None:
    """Found by its entry point, trained on the digits, saved, on the leaderboard; nothing here knows it."""
    assert "weight-averaging" not in registry.names()
    listed = environment("defenses", "--format", "json")
    assert (listed.returncode, listed.stderr) == (0, "")
    entry = {entry["name"]: entry for entry in json.loads(listed.stdout)}["weight-averaging"]
    assert entry["source"] == "advbench_weight_averaging.method:WeightAveraging"
    assert entry["parameters"] == {"decay": 0.9}
    budget = ["--epochs", "1", "--set", "pretrain.epochs=1", "--set", "decay=0.8", "--points", "60"]
    attacks = ["--sequence", "fgsm,pgd:steps=3", "--unseen", "gaussian-noise", "--threads", "1"]
    done = environment("run", "--defense", "weight-averaging", *attacks, *budget)
    assert done.returncode == 0, done.stderr
    board = environment("leaderboard", "--format", "csv")
    assert board.returncode == 0, board.stderr
    assert "weight-averaging" in board.stdout


@pytest.mark.slow
def test_the_plug_in_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its author would find out."""
    monkeypatch.syspath_prepend(PACKAGE)
    try:
        kind = find_defense("advbench_weight_averaging:WeightAveraging")
        assert kind is find_defense("advbench_weight_averaging.method:WeightAveraging")
        broken = [str(check) for check in check_defense(kind) if not check.holds]
        assert not broken, "\n".join(broken)
    finally:
        for name in [name for name in sys.modules if name.startswith("advbench_weight_averaging")]:
            del sys.modules[name]
