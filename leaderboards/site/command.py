"""The command line that repeats a run, from the config of its record."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from leaderboards.records.layout import EVALUATED
from leaderboards.statistics.naming import attack_name, knobs_of

FROM_RECORD: Final = "advbench run --config record.json"
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_YAML_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
_LITERAL_WORDS: Final = frozenset({"true", "false", "none", "null"})
_LINE: Final = 100
_ZOOS: Final = ("torchvision:", "timm:", "robustbench:")
_FILES: Final = (".pt", ".pth", ".ts", ".pt2")


@dataclass(frozen=True)
class Command:
    """A command line, quoted for a shell, on several lines; ``text`` is None if there is none.

    ``note`` is empty, or one sentence: why there is no command, or what else it needs.
    """

    text: str | None
    note: str = ""


class _CannotSpellError(ValueError):
    """No command line gives the config; the message says why."""


def from_record(config: Mapping[str, Any]) -> Command:
    """The command ``advbench run --config record.json``; there is none for a model trained elsewhere."""
    if config.get("regime") == EVALUATED:
        return Command(None, "A model that was trained elsewhere is evaluated again by advbench eval.")
    model = config.get("model")
    if isinstance(model, str) and ":" in model and not model.startswith(_ZOOS):
        return Command(FROM_RECORD, f"It imports the code of {model}: add --trust if you trust that.")
    return Command(FROM_RECORD)


def spelled_out(config: Mapping[str, Any]) -> Command:
    """A command line with every option of a record's config, which resolves to the same config.

    Records may come from anyone, so arguments are quoted for the shell. An argument with an invisible
    character gives no command, because a pasted control character could end the quotes.
    """
    try:
        evaluated = config.get("regime") == EVALUATED
        options = list(_evaluation(config) if evaluated else _training(config))
        lines = _filled([f"{name} {_quoted(name, value)}" for name, value in options])
    except _CannotSpellError as reason:
        return Command(None, f"{reason}: no command line says that.")
    except (TypeError, ValueError, KeyError, AttributeError):
        return Command(None, "The record's config is not one of this program's: there is no command for it.")
    words = "advbench eval" if evaluated else "advbench run"
    return Command(
        " \\\n  ".join([words, *lines]), " ".join(_needs(config["params"] if evaluated else config))
    )


def _needs(origin: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what must be available or trusted before the command is run."""
    if ":" in origin["model"] and not origin["model"].startswith(_ZOOS):
        yield f"It imports the code of {origin['model']}: read that first."
    if origin["model"].endswith(_FILES) and origin.get("weights"):
        yield f"It loads the program {origin['model']}, which can run any code: add --trust if you trust it."
    if weights := origin.get("weights"):
        name = weights["name"] if isinstance(weights, Mapping) else weights
        yield f"It needs the file {name}, whose checksum is in the record."


def _filled(options: Sequence[str]) -> list[str]:
    """Options joined to lines of limited length."""
    lines = [""]
    for option in options:
        if lines[-1] and len(lines[-1]) + len(option) >= _LINE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {option}".strip()
    return lines


def _training(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options of ``advbench run``."""
    for option, key in (("--defense", "defense"), ("--regime", "regime"), ("--dataset", "dataset")):
        yield option, _text(config[key])
    if config.get("data_dir") is not None:
        yield "--data-dir", _text(config["data_dir"])
    yield "--model", _text(config["model"])
    yield from _model_args(config)
    if config.get("weights") is not None:
        yield "--weights", _text(config["weights"]["name"])
    yield "--sequence", _attacks(config["sequence"])
    yield "--unseen", _attacks(config["unseen"])
    yield "--eval", _attacks(config["eval"])
    yield from _where_and_how(config)
    plan_keys = {*config["plan"], *(f"pretrain.{key}" for key in config["pretrain"])}
    for key, value in config["params"].items():
        if key in plan_keys:
            raise _CannotSpellError(f"--set {key} would set both the defense and the training plan")
        yield "--set", f"{key}={_yaml(value)}"
    for prefix, plan in (("", config["plan"]), ("pretrain.", config["pretrain"])):
        for key, value in plan.items():
            yield "--set", f"{prefix}{key}={_plan_value(value)}"
    for knob, value in _training_knobs(config["sequence"], config["training"]).items():
        yield "--train-set", f"{knob}={value}"


def _evaluation(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options of ``advbench eval``."""
    origin = config["params"]
    model, weights = _text(origin["model"]), origin.get("weights")
    from_file = model.endswith(_FILES)
    if weights is None and ":" not in model and not from_file:
        raise _CannotSpellError("The model was passed as a Python object, not named by a text")
    yield "--model", model
    yield from _model_args(origin)
    if weights is not None and not from_file:
        yield "--weights", _text(weights)
    if "threat" in origin:
        yield "--threat", _text(origin["threat"])
    for key in ("mean", "std"):
        if origin.get(key):
            yield f"--{key}", ",".join(repr(float(value)) for value in origin[key])
    yield "--name", _text(config["defense"])
    yield "--dataset", _text(config["dataset"])
    if config.get("data_dir") is not None:
        yield "--data-dir", _text(config["data_dir"])
    yield "--attacks", _attacks(config["eval"])
    yield from _where_and_how(config)


def _model_args(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The further arguments of the model, as Python literals."""
    for key, value in (given.get("model_args") or {}).items():
        yield "--model-arg", f"{_text(key)}={_literal(value)}"


def _literal(value: Any) -> str:
    """A value in the syntax of ``--model-arg``, where a text that reads like another value needs quotes."""
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _LITERAL_WORDS:
        return value
    return repr(value)


def _where_and_how(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    points = dict(config["points"])
    if points:
        default = [str(int(points.pop("default")))] if "default" in points else []
        yield "--points", ",".join([*default, *(f"{name}={int(count)}" for name, count in points.items())])
    yield "--seed", str(int(config["seed"]))
    yield "--device", _text(config["device"])
    if config["threads"] is not None:
        yield "--threads", str(int(config["threads"]))


def _training_knobs(sequence: Sequence[str], training: Sequence[str]) -> dict[str, str]:
    """The name ``attack.knob`` and the value of every training knob.

    ``--train-set`` names an attack, so two attacks with one name share its value. Two attacks that differ
    only in eps, which evaluation sets, and have equal step sizes relative to it, need no option.
    """
    named: dict[str, list[tuple[dict[str, str], dict[str, str]]]] = {}
    for text, trained in zip(sequence, training, strict=True):
        name, knobs = attack_name(trained), knobs_of(trained)
        named.setdefault(name, []).append((knobs_of(text), knobs))
    found: dict[str, str] = {}
    for name, twins in named.items():
        agreed = set.intersection(*(set(knobs.items()) for _, knobs in twins))
        free = {knob for _, knobs in twins for knob in knobs} - {knob for knob, _ in agreed}
        lengths = {round(_relative_step(knobs), 9) for _, knobs in twins if "step_size" in free}
        follows = all(own.get("eps") == knobs.get("eps") for own, knobs in twins)
        if free and not (free <= {"eps", "step_size"} and follows and len(lengths) <= 1):
            raise _CannotSpellError(
                f"{name} is listed twice in the sequence and is trained differently each time"
            )
        found |= {f"{name}.{knob}": value for knob, value in sorted(agreed)}
    return found


def _relative_step(knobs: Mapping[str, str]) -> float:
    return float(knobs["step_size"]) * float(knobs.get("steps", 1)) / float(knobs["eps"])


def _attacks(texts: Sequence[str]) -> str:
    if isinstance(texts, str):
        raise TypeError("a list of attacks, not a text")
    return ",".join(map(_text, texts)) or "none"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a text is expected")
    return value


def _plan_value(value: object) -> str:
    """A value in the syntax of the training plan: ``crop+flip``, ``none``, or the value's own text."""
    if isinstance(value, list):
        return "+".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _yaml(value: Any) -> str:
    """A value in YAML: numbers with an exponent need a point, words with a special meaning need quotes."""
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return repr(value) if not e or "." in mantissa else f"{mantissa}.0e{exponent}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml(key)}: {_yaml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _quoted(name: str, value: str) -> str:
    if not value.isprintable():
        raise _CannotSpellError(f"The value of {name} contains invisible characters")
    return shlex.quote(value)
