"""What a user gets wrong: one line on stderr that says so, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import contents, python

from advbench.cli.main import invoke
from advbench.runs.saved import Run

# A run that is over at once should one of these be accepted after all.
QUICK = ["--sequence", "fgsm", "--unseen", "none", "--epochs", "1", "--points", "5", "--threads", "1"]
QUICK += ["--set", "pretrain.epochs=1"]


def bomb(levels: int) -> str:
    """YAML of a few hundred letters that unfolds to a list of 10^levels."""
    text = "&a0 [" + ", ".join("x" * 10) + "]"
    for level in range(1, levels):
        text = f"&a{level} [{text}{f', *a{level - 1}' * 9}]"
    return f"sequence: {text}"


CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "binary.yaml": (b"\xff\xfe\x00\x01", "config config/binary.yaml is not text"),
    "broken.yaml": ("defense: [air", "config/broken.yaml is neither YAML nor JSON"),
    "empty.yaml": ("", "must hold key: value pairs, not nothing"),
    "list.yaml": ("- air", "must hold key: value pairs, not list"),
    "number.yaml": ("3", "must hold key: value pairs, not int"),
    "key.yaml": ("defence: air", "unknown option 'defence': did you mean 'defense'?"),
    "runs_dir.yaml": ("runs_dir: elsewhere", "unknown option 'runs_dir'"),
    "sample_seed.yaml": ("sample_seed: 3", "unknown option 'sample_seed'"),
    "numeric_key.yaml": ("1: 2", "unknown option '1'"),
    "seed_text.yaml": ("seed: abc", "seed: Input should be a valid integer"),
    "seed_null.yaml": ("seed: null", "seed: Input should be a valid integer"),
    "epochs.yaml": ("epochs: 0", "epochs: Input should be greater than or equal to 1"),
    "set_list.yaml": ("set: [1]", "set: Input should be a valid dictionary"),
    "set_null.yaml": ("set: null", "set: Input should be a valid dictionary"),
    "sequence.yaml": ("sequence: [{pgd: 3}]", "sequence.str: Input should be a valid string"),
    "plan.yaml": ("plan: {lrr: 0.1}", "unknown plan key 'lrr': did you mean 'lr'?"),
    "two.yaml": ("--- {seed: 1}\n--- {seed: 2}", "is neither YAML nor JSON: expected a single docum"),
    "tag.yaml": ("defense: !!python/object/apply:os.system [touch pwned]", "is neither YAML nor JSON: could"),
    "itself.yaml": ("&a {set: *a}", "aliases (*name) are not read"),
    "bomb.yaml": (bomb(9), "aliases (*name) are not read"),
    "deep.json": ("[" * 5_000, "is neither YAML nor JSON"),
    "long.yaml": (f"epochs: {'x' * 100_000}", "epochs: Input should be a valid integer"),
    "newer.json": ('{"schema": 9, "anything": 1}', "unknown record schema 9: this version reads schema 1"),
    "schema.json": ('{"schema": "1"}', 'unknown record schema "1"'),
    "record.json": ('{"schema": 1, "id": "x"}', "missing key 'created'"),
}
"""Files that `--config` refuses, with what is said."""

FILES: dict[str, str | bytes] = {f"config/{name}": content for name, (content, _) in CONFIGS.items()} | {
    "a_file": "no run",
    "folder/train/one/note.txt": "no image",
    "config/seed_fraction.yaml": "seed: 1.5",
    "config/training.yaml": "sequence: [fgsm]\ntraining: [pgd]",
    "runs_newer/run/record.json": '{"schema": 2}',
    "runs_newer/run/log.jsonl": "",
    "damaged/record.json": '{"schema": 1,',
    "binary/record.json": b"\x00\xff",
    "unfinished/log.jsonl": "",
    "directory.svg/note.txt": "no picture",
    "own_models.py": "def fails(): raise ValueError('two\\nlines')\n"
    "def text(): return 'no module'\n"
    "def narrow():\n    from torch import nn\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    "number = 3\n",
    "broken_model.py": "import not_a_package_of_this_world\n",
}

WRONG_RUNS: dict[str, tuple[str, str]] = {
    f"config {name}": (f"--config config/{name}", said) for name, (_, said) in CONFIGS.items()
} | {
    "defense": ("--defense arr", "unknown defense 'arr': did you mean 'air'?"),
    "defense nothing": ("--defense ''", "unknown defense ''"),
    "regime of air": ("--regime joint", "defense 'air' does not support regime 'joint' (allowed: continual)"),
    "regime of at": ("--defense at --regime meta", "does not support regime 'meta' (allowed: continual, joi"),
    "regime of joint": ("--defense joint --regime continual", "it means at in 'joint'"),
    "attack": ("--sequence fgsm,pdg", "unknown attack 'pdg': did you mean 'pgd'? (advbench attacks lists al"),
    "knob": ("--sequence pgd:stepz=3", "unknown knob of pgd 'stepz': did you mean 'steps'?"),
    "choice": ("--sequence pgd:loss=dlrr", "unknown pgd.loss 'dlrr': did you mean 'dlr'?"),
    "eps=0": ("--sequence pgd:eps=0", "pgd.eps=0 is out of range: it must be above 0 and at most 1"),
    "eps=2": ("--sequence pgd:eps=2", "pgd.eps=2 is out of range"),
    "eps=9/0": ("--sequence pgd:eps=9/0", "pgd.eps=9/0 divides by zero"),
    "eps=1/2/3": ("--sequence pgd:eps=1/2/3", "pgd.eps=1/2/3 is not a number: write 0.1 or 8/255"),
    "eps=nan": ("--sequence pgd:eps=nan", "pgd.eps=nan is not finite"),
    "eps=1e999": ("--sequence pgd-l2:eps=1e999", "pgd-l2.eps=1e999 is not finite"),
    "eps=nothing": ("--sequence pgd:eps=", "'pgd:eps=' cannot be read: write knob=value"),
    "eps twice": ("--sequence pgd:eps=0.1,eps=0.2", "pgd: knob 'eps' is given twice"),
    "eps alone": ("--sequence eps=0.1", "'eps=0.1' comes before any attack"),
    "steps=0": ("--sequence pgd:steps=0", "pgd.steps=0 is out of range: it must be at least 1"),
    "steps=1.5": ("--sequence pgd:steps=1.5", "pgd.steps=1.5 must be a whole number"),
    "no sequence": ("--sequence ''", "the list of attacks is empty"),
    "blank sequence": ("--sequence ' '", "the list of attacks is empty"),
    "gap": ("--sequence fgsm,,pgd", "has an attack without a name"),
    "repeated": ("--sequence fgsm,pgd,fgsm", "attack 'fgsm' is listed twice"),
    "sample": ("--sequence sample", "'sample' cannot be read: write sample:4"),
    "sample:0": ("--sequence sample:0", "cannot sample 0 attacks: choose between 1 and"),
    "sample:999": ("--sequence sample:999", "cannot sample 999 attacks: choose between 1 and"),
    "unseen": ("--unseen pdg", "unknown attack 'pdg'"),
    "unseen is seen": ("--unseen fgsm", "unseen attack 'fgsm' is in the sequence"),
    "eval is seen": ("--eval fgsm", "eval: 'fgsm' is measured already, as part of the sequence"),
    "eval is unseen": ("--unseen bim --eval bim", "eval: 'bim' is measured already, as part of unseen"),
    "data set": ("--dataset digitz", "unknown data set 'digitz': did you mean 'digits'?"),
    "no data dir": ("--dataset mnist", "data set 'mnist' is read from files: give --data-dir"),
    "data dir": ("--dataset mnist --data-dir nowhere", "no file nowhere"),
    "data file": ("--dataset cifar10 --data-dir a_file", "data set 'cifar10': no "),
    "folder": ("--dataset folder:nowhere", "no folder nowhere"),
    "folder nothing": ("--dataset folder:", "names no folder"),
    "folder without test": ("--dataset folder:folder", "no folder folder/test"),
    "model": ("--model lenett", "unknown model 'lenett': did you mean 'lenet'?"),
    "model too large": ("--model lenet", "image"),
    "model form": ("--model a-b:c", "is not of the form package.module:factory"),
    "model module": ("--model nowhere_at_all:make", "no module 'nowhere_at_all'"),
    "model factory": ("--model own_models:fals", "unknown model factory 'fals': did you mean 'fails'?"),
    "model number": ("--model own_models:number", "number is int, expected a function or a class"),
    "model fails": ("--model own_models:fails", "the factory failed: ValueError: two"),
    "model text": ("--model own_models:text", "the factory gave str, expected a torch.nn.Module"),
    "model logits": ("--model own_models:narrow", "gives logits of shape (2, 3)"),
    "model import": ("--model broken_model:make", "importing broken_model failed: ModuleNotFoundError"),
    "device": ("--device gpu", "unknown device 'gpu'"),
    "device not here": ("--device cuda:99", "device 'cuda:99' is not available: this machine has"),
    "device auto:3": ("--device auto:3", "unknown device 'auto:3': did you mean 'auto'?"),
    "device cpu:1": ("--device cpu:1", "unknown device 'cpu:1': did you mean 'cpu'?"),
    "epochs=0": ("--epochs 0", "'--epochs': "),
    "epochs=x": ("--epochs x", "'--epochs': "),
    "seed=-1": ("--seed -1", "'--seed': "),
    "seed too large": ("--seed 9223372036854775808", "seed: Input should be less than 9223372036854775808"),
    "threads=0": ("--threads 0", "'--threads': "),
    "threads too many": ("--threads 10000000", "threads: Input should be less than or equal to 1024"),
    "seeds=x": ("--seeds x", "--seeds 'x' cannot be read: write 5, 0,3,7 or 0-4"),
    "seeds nothing": ("--seeds ''", "--seeds '' cannot be read"),
    "seeds=0": ("--seeds 0", "--seeds '0' must name 1 to 1,000 different seeds"),
    "seeds=-3": ("--seeds=-3", "--seeds '-3' cannot be read"),
    "seeds=5-2": ("--seeds 5-2", "--seeds '5-2' must name 1 to 1,000 different seeds"),
    "seeds=1-2-3": ("--seeds 1-2-3", "--seeds '1-2-3' cannot be read"),
    "seeds twice": ("--seeds 0,1,0", "--seeds '0,1,0' must name 1 to 1,000 different seeds"),
    "seeds without end": ("--seeds 0-99999999999999999999", "must name 1 to 1,000"),
    "seeds too many": ("--seeds 1001", "--seeds '1001' must name 1 to 1,000 different seeds"),
    "seeds, one too large": ("--seeds 0,9223372036854775808", "names seed 9223372036854775808: a seed is"),
    "points=0": ("--points 0", "points=0: digits has 360 test points; give a number from 1 to that"),
    "points too many": ("--points 361", "points=361: digits has 360 test points"),
    "points=1.5": ("--points 1.5", "points=1.5: digits has 360 test points"),
    "points=x": ("--points x", "points=x is not a number: write 1000, cw=1000 or 5000,cw=1000"),
    "points twice": ("--points 50,50", "points=50,50: two numbers for all attacks, 50 and 50"),
    "points of fgsm twice": ("--points fgsm=5,fgsm=6", "two numbers for fgsm, 5 and 6"),
    "points of another": ("--points 5,pgd=3", "unknown attack in points 'pgd'"),
    "points of fgsm too many": ("--points fgsm=1000", "points=1000: digits has 360 test points"),
    "set without =": ("--set lr", "--set 'lr' cannot be read: write key=value"),
    "set without key": ("--set =3", "--set '=3' cannot be read"),
    "set without value": ("--set lr=", "--set 'lr=' cannot be read"),
    "setting": ("--set lambada_i=1", "unknown setting for air 'lambada_i': did you mean 'lambda_i'?"),
    "setting of another": ("--defense at --set lambda_i=1", "unknown setting for at 'lambda_i'"),
    "setting of pretraining": ("--set pretrain.epoch=1", "did you mean 'pretrain.epochs'?"),
    "lambda_i=-1": ("--set lambda_i=-1", "lambda_i=-1.0 must be at least 0"),
    "lambda_i=x": ("--set lambda_i=x", "lambda_i=x is not valid for air"),
    "lambda_a=inf": ("--set lambda_a=inf", "lambda_a=inf is not valid for air: it is not finite"),
    "sigma=nan": ("--set sigma=nan", "sigma=nan is not valid for air: it is not finite"),
    "steps=true": ("--defense trades --set steps=true", "steps=true is not valid for trades: it is true or"),
    "beta=0": ("--set beta=0", "beta=0.0 must be above 0"),
    "distance": ("--set distance=l2", "distance=l2 is not valid for air: Input should be 'mse' or 'kl'"),
    "mix": ("--defense joint --set mix=all", "mix=all is not valid for at"),
    "lr=0": ("--set lr=0", "lr: Input should be greater than 0 (given '0')"),
    "lr=inf": ("--set lr=inf", "lr: Input should be a finite number"),
    "momentum=1": ("--set momentum=1", "momentum: Input should be less than 1"),
    "schedule": ("--set schedule=cos", "schedule: Input should be 'constant', 'cosine',"),
    "augmentation": ("--set augmentation=cutut", "unknown augmentation 'cutut': did you mean 'cutout'?"),
    "two crops": ("--set augmentation=crop+resized-crop", "crop and resized-crop both cut the image"),
    "warm-up": ("--set eps_warmup=5", "eps_warmup=5 is longer than the 1 epochs of the stage"),
    "batch size": ("--set batch_size=1", "batch_size: Input should be greater than or equal to 2"),
    "pretraining without end": ("--set pretrain.epochs=99999999999999999999", "less than or equal to 100000"),
    "epochs without end": ("--epochs 10000000", "epochs: Input should be less than or equal to 1000000"),
    "batches without end": ("--set batch_size=10000000000", "less than or equal to 1000000"),
    "pretraining": (
        "--set pretrain.epochs=-1",
        "pretrain.epochs: Input should be greater than or equal to 0",
    ),
    "rate of pretraining": ("--set pretrain.lr=fast", "pretrain.lr: Input should be a valid number"),
    "warm-up of pretraining": ("--set pretrain.eps_warmup=99", "pretrain.eps_warmup=99 is longer than"),
    "augmentation of pretraining": ("--set pretrain.augmentation=zoom", "pretrain.augmentation: unknown aug"),
    "select": ("--select best", "select: Input should be 'last' or 'val-robust' (given 'best')"),
    "train-set without =": ("--train-set fgsm.eps", "--train-set 'fgsm.eps' cannot be read: write key=value"),
    "train-set without dot": ("--train-set eps=1", "train-set eps=1 cannot be read: write attack.knob=value"),
    "train-set of another": ("--train-set pgd.steps=3", "unknown attack in training knobs 'pgd'"),
    "train-set knob": ("--train-set fgsm.step=3", "unknown knob of fgsm 'step'"),
    "train-set value": ("--train-set fgsm.eps=many", "fgsm.eps=many is not a number"),
    "runs dir is a file": ("--runs-dir a_file", "runs directory a_file is a file or lies below one"),
    "runs dir below a file": ("--runs-dir a_file/runs", "is a file or lies below one: name another"),
    "config missing": ("--config nowhere.yaml", "cannot read config nowhere.yaml: No such file"),
    "config is a directory": ("--config config", "cannot read config config: Is a directory"),
    "config seed fraction": ("--config config/seed_fraction.yaml --seed 1", "seed: Input should be a valid"),
}

WRONG_COMMANDS: dict[str, tuple[str, str]] = {
    "command": ("trane", "No such command 'trane'."),
    "option": ("run --sequense fgsm", "No such option: --sequense"),
    "option of no command": ("--verbose", "No such option: --verbose"),
    "option without value": ("run --sequence", "Option '--sequence' requires an argument"),
    "argument": ("run air", "Got unexpected extra argument"),
    "training of others": ("run --config config/training.yaml", "training: must name the attacks of the seq"),
    "show nothing": ("show", "Missing argument"),
    "show nowhere": ("show nowhere", "no run 'nowhere' here or in runs"),
    "show a file": ("show a_file", "a_file: not a JSON record"),
    "show unfinished": ("show unfinished", "no record at unfinished/record.json: the run did not finish"),
    "show damaged": ("show damaged", "damaged/record.json: not a JSON record"),
    "show newer": ("show runs_newer/run", "unknown record schema 2: this version reads schema 1"),
    "show binary": ("show binary", "binary/record.json: not a JSON record"),
    "repeat newer": ("run --config runs_newer/run/record.json", "unknown record schema 2: this version read"),
    "leaderboard of a long name": (f"leaderboard --runs-dir {'a' * 300}", "File name too long"),
    "leaderboard nowhere": ("leaderboard --runs-dir nowhere", "no runs directory at nowhere"),
    "leaderboard of a file": ("leaderboard --runs-dir a_file", "no runs directory at a_file"),
    "leaderboard newer": ("leaderboard --runs-dir runs_newer", "unknown record schema 2: this version reads"),
    "leaderboard data set": ("leaderboard --dataset mnist", "no records on data set 'mnist': there are reco"),
    "leaderboard format": ("leaderboard --format xml", "'--format': 'xml' is not one of 'table'"),
    "nearest format": ("leaderboard --format jsn", "Did you mean 'json'?"),
    "leaderboard key": ("leaderboard --rank-by averag", "'averag': did you mean 'average'?"),
    "leaderboard where": ("leaderboard --where model", "where 'model' cannot be read: write KEY=VALUE"),
    "leaderboard where value": ("leaderboard --where params.sigma=9", "no rows with params.sigma '9': there"),
    "leaderboard columns": ("leaderboard --columns rank,averge", "column 'averge': did you mean 'average'?"),
    "leaderboard group": ("leaderboard --group-by defence", "column 'defence': did you mean 'defense'?"),
    "leaderboard pivot": ("leaderboard --pivot defense,model", "cannot be read: write ROWS,COLUMNS,VALUE"),
    "leaderboard out": ("leaderboard --format csv --out nowhere/board.csv", "cannot write nowhere/board.csv"),
    "leaderboard out is a folder": ("leaderboard --format csv --out config", "cannot write config: Is a dir"),
    "leaderboard out below a file": ("leaderboard --out a_file/x", "cannot write a_file/x: Not a directory"),
    "attacks": ("attacks pdg", "unknown attack 'pdg': did you mean 'pgd'?"),
    "attacks format": ("attacks --format csv", "'--format': "),
    "attacks sample": ("attacks sample", "sample takes one number, not ''"),
    "attacks sample two": ("attacks sample 2 3", "sample takes one number, not '2 3'"),
    "attacks sample x": ("attacks sample x", "sample takes one number, not 'x'"),
    "attacks sample 0": ("attacks sample 0", "cannot sample 0 attacks"),
    "attacks seed": ("attacks sample 2 --seed=-1", "'--seed': "),
    "defenses": ("defenses aer", "unknown defense 'aer': did you mean 'air'?"),
    "verify nothing": ("verify", "Missing argument"),
    "verify nowhere": ("verify nowhere", "no run 'nowhere' here or in runs"),
    "verify unfinished": ("verify unfinished", "no record at unfinished/record.json: the run did not finish"),
    "verify format": ("verify runs/good --format csv", "'--format': "),
    "verify stage": ("verify runs/good --stages 7", "has stages 0, 1, 2; give some of them, last or all"),
    "verify stages": ("verify runs/good --stages first", "--stages 'first': run "),
    "verify attack": ("verify runs/good --attacks pdg", "unknown attack of the run 'pdg': did you mean 'pgd"),
    "verify knob": ("verify runs/good --attacks pgd:stepz=3", "unknown knob of pgd 'stepz'"),
    "verify other knob": ("verify runs/good --attacks pgd:steps=9", "--attacks 'pgd:steps=9': the run has p"),
    "verify no attack": ("verify runs/good --attacks ''", "the list of attacks is empty"),
    "verify points": ("verify runs/good --points 0", "'--points': "),
    "verify seed": ("verify runs/good --seed=-1", "'--seed': "),
    "verify of no such seed": ("verify runs --run-seed 7", "none of 1 runs has seed 7"),
    "verify of no such defense": ("verify runs --defense at --dataset digits", "runs has defense at, datase"),
    "verify device": ("verify runs/good --device gpu", "unknown device 'gpu'"),
    "verify threads": ("verify runs/good --threads 100000", "100000 is not a number of threads"),
    "verify surrogate": ("verify runs/good --surrogate nowhere", "no run 'nowhere' here or in runs"),
    "verify weights": ("verify runs/good --weights a_file", "--weights goes with records of advbench eval"),
    "verify sample of training": ("verify runs/good --retrain --stages 1", "--retrain compares everything"),
    "keep what is not made": ("verify runs/good --keep kept", "--keep needs --retrain"),
    "keep in a file": ("verify runs/good --retrain --keep a_file", "runs directory a_file is a file"),
    "retrain nowhere": ("verify nowhere --retrain", "no run 'nowhere' here or in runs"),
    "submit nowhere": ("submit nowhere", "no run 'nowhere' here or in runs"),
    "submit unfinished": ("submit unfinished", "no record at unfinished/record.json"),
    "submit over a file": ("submit runs/good --out a_file", "a_file exists already: name another with"),
    "submit to nowhere": ("submit runs/good --out nowhere/x.zip", "cannot write nowhere/x.zip: No such file"),
    "accept nothing": ("accept", "Missing argument"),
    "accept nowhere": ("accept nowhere.zip", "no archive at nowhere.zip: advbench submit makes one"),
    "accept a file": ("accept a_file", "archive a_file is not an archive of advbench submit, or is damaged"),
    "accept a directory": ("accept runs", "cannot read archive runs: Is a directory"),
    "accept into a file": ("accept a_file --runs-dir a_file", "runs directory a_file is a file or lies belo"),
    "data sets": ("datasets digitz", "unknown data set 'digitz': did you mean 'digits'?"),
    "plot nothing": ("plot", "Missing argument 'KIND'"),
    "plot kind": ("plot heatmp", "unknown picture 'heatmp': did you mean 'heatmap'?"),
    "plot theme": ("plot heatmap --theme drak", "unknown theme 'drak': did you mean 'dark'?"),
    "plot dots": ("plot heatmap --dpi 0", "'--dpi': "),
    "plot no run": ("plot heatmap god", "no run 'god' here or in runs: did you mean 'good'?"),
    "plot nowhere": ("plot heatmap --runs-dir nowhere", "no runs directory at nowhere"),
    "plot no runs": ("plot heatmap --runs-dir config", "no finished runs in config: advbench run makes one"),
    "plot newer": ("plot heatmap --runs-dir runs_newer", "unknown record schema 2: this version reads"),
    "plot suffix": ("plot heatmap --out a.jpg", "--out a.jpg: the name must end in .svg, .png or .pdf"),
    "plot no suffix": ("plot heatmap --out runs", "--out runs: the name must end in .svg, .png or .pdf"),
    "plot directory": ("plot heatmap --out directory.svg", "--out directory.svg is a directory"),
    "plot no directory": ("plot heatmap --out no/a.svg", "--out no/a.svg: there is no directory no"),
    "plot below a file": ("plot heatmap --out a_file/a.svg", "there is no directory a_file"),
    "plot other option": ("plot radar --attacks pgd", "--attacks: only for images, not for radar"),
    "plot two options": ("plot eps --points 3 --trust", "--points and --trust: only for images, not for eps"),
    "plot measure of another": ("plot images --measure average", "--measure: only for tradeoff"),
    "plot measure": ("plot tradeoff --measure wors-case", "unknown measure 'wors-case': did you mean 'worst"),
    "plot images of two": ("plot images good good", "images takes one run, not 2: name it"),
    "plot images attack": ("plot images good --attacks pdg", "unknown attack of run"),
    "plot images none": ("plot images good --points 0", "'--points': "),
}


@pytest.fixture(scope="module")
def pristine(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with every wrong file, and one good run."""
    place = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.copytree(small_run.path, place / "runs" / "good")
    return place


@pytest.fixture
def place(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a case; no case may change it, so that all can share it."""
    monkeypatch.chdir(pristine)
    return pristine


def refused(capfd: Any, place: Path, arguments: list[str]) -> str:
    """The one line with which a command is refused; nothing else was printed, and nothing written."""
    before = contents(place)
    code = invoke(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert re.fullmatch(r"error: .*\n", err), err
    assert len(err) < 1000
    assert contents(place) == before
    return str(err)


def split(text: str) -> list[str]:
    """Words as a shell would give them."""
    return [part.strip("'") for part in re.findall(r"'[^']*'|\S+", text)]


@pytest.mark.parametrize("case", WRONG_RUNS)
def test_a_run_that_cannot_be(case: str, place: Path, capfd: Any) -> None:
    """One line, exit code 2, nothing written: not even the runs directory."""
    text, message = WRONG_RUNS[case]
    given = split(text)
    pairs = zip(QUICK[::2], QUICK[1::2], strict=True)
    # An option that is given twice is refused for that.
    quick = [word for option, value in pairs if option not in given for word in (option, value)]
    assert message in refused(capfd, place, ["run", *([] if case == "config plan.yaml" else quick), *given])


@pytest.mark.parametrize("case", WRONG_COMMANDS)
def test_a_command_that_cannot_be(case: str, place: Path, capfd: Any) -> None:
    """The same for everything else."""
    text, message = WRONG_COMMANDS[case]
    assert message in refused(capfd, place, split(text))


@pytest.mark.usefixtures("place")
def test_the_quick_run_is_accepted(call: Any) -> None:
    """What the cases are wrong about is what they add to it."""
    assert "new in runs" in call("run", *QUICK, "--dry-run")[0]


def test_numbers_too_large_for_a_float(place: Path, tmp_path: Path, capfd: Any) -> None:
    """A file may hold integers of any length."""
    config = tmp_path / "huge.json"
    config.write_text(json.dumps({"sequence": ["fgsm"], "points": 10**400}))
    assert "digits has 360 test points" in refused(capfd, place, ["run", "--config", str(config)])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory in which nobody can write")
def test_what_cannot_be_made_or_written(place: Path, capfd: Any) -> None:
    """Where the system itself says no, to root too."""
    line = refused(capfd, place, ["run", *QUICK, "--runs-dir", "/proc/runs"])
    assert "cannot create runs directory /proc/runs: " in line
    line = refused(capfd, place, ["plot", "heatmap", "good", "--theme", "both", "--out", "/proc/a.svg"])
    assert "cannot write /proc/a-light.svg: " in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_runs_directory_that_is_read_only(place: Path, tmp_path: Path, capfd: Any) -> None:
    """Existing or not."""
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    try:
        for runs in (locked, locked / "runs"):
            line = refused(capfd, place, ["run", *QUICK, "--runs-dir", str(runs)])
            assert "Permission denied" in line
    finally:
        locked.chmod(0o755)


@pytest.mark.slow
def test_in_a_process_of_its_own(place: Path) -> None:
    """Nothing that is printed at import or at exit adds to the line."""
    text, message = "run --sequence pdg", "unknown attack 'pdg': did you mean 'pgd'?"
    before = contents(place)
    done = python("-m", "advbench", *split(text), cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*\n", done.stderr)
    assert message in done.stderr
    assert contents(place) == before
