"""Recomputes a record's claims from other stored data; no model is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from safetensors.torch import load_file

from advbench.config.identity import code_modules, identity_from
from advbench.config.options import protocol_of
from advbench.evaluation.stochastic import JUDGED_BY
from advbench.runs.record import attack_entry, by_group, per_class_counts
from advbench.runs.saved import WEIGHTS
from advbench.runtime.factory import one_line
from advbench.runtime.hashing import PACKAGES, digest, weights_digest
from advbench.verify.bounds import beyond_the_data
from advbench.verify.flags import check_audit
from advbench.verify.report import Report
from advbench.verify.subject import Subject
from attacks_pool import InputError
from defenses import registry
from leaderboards import CLEAN, RecordError, check_run, read_manifest, read_outcomes
from leaderboards.audits.contradictions import class_faults, equal, metrics_given, threat_faults
from leaderboards.records.checksums import digest_of
from leaderboards.records.entries import Role
from leaderboards.records.layout import MANIFEST, OUTCOMES, RECORD, STAGES
from leaderboards.statistics.measured import transfer_metric


def check_identity(subject: Subject) -> Iterator[str]:
    """A line if ``run.json`` does not match the record, or its identity is not the hash of its contents."""
    run, record = subject.run, subject.record
    if not (run.path / MANIFEST).exists():
        return
    manifest = read_manifest(run.path)
    one, other = manifest.config, record.config
    if keys := sorted(key for key in {*one, *other} if one.get(key, ...) != other.get(key, ...)):
        yield f"{MANIFEST}: has another {' and '.join(keys)} than the record"
    if manifest.kind != ("eval" if subject.evaluated else "run"):
        yield f"{MANIFEST}: of another kind of run, {manifest.kind!r}"
    facts = manifest.more.get("facts")
    if subject.evaluated or not isinstance(facts, dict):
        return
    environment = record.environment
    claimed = {
        "data": environment["data"]["fingerprint"],
        "threads": environment["threads"],
        "device": str(environment["device"]).partition(" ")[0],
        "processes": environment.get("processes", 1),
    }
    named = {"processes": 1, **facts}
    for key, value in claimed.items():
        if named.get(key) != value:
            yield f"{MANIFEST}: {key} is {named.get(key)!r}, in the record {value!r}"
    if any(name.partition(".")[0] not in PACKAGES for name in code_modules(run.config)):
        # The manifest has only the hash of this suite, but other code also entered the identity.
        return
    try:
        identity = identity_from(run.config, environment["data"]["name"], facts)
    except KeyError as error:
        yield f"{MANIFEST}: its facts lack {error}"
        return
    if "surrogate" in facts:
        identity = digest({"run": identity, "surrogate": facts["surrogate"]})
    if identity != manifest.identity:
        yield f"{MANIFEST}: its identity is not the hash of its configuration and its facts"


ROUTED = ("router_nmi", "router_overhead")
OF_THE_MODEL = ("regenerated_psnr", "regenerated_ssim", "adversarial_psnr", "adversarial_ssim", *ROUTED)
"""Metrics that do not follow from outcomes, only from the model itself."""
Claim = Callable[[Subject], Iterator[str]]
LEEWAY = 50
"""The most passes of a cell relative to its attack's declaration: 20 draws per gradient, and some extra."""


def check_claims(subject: Subject, report: Report) -> None:
    """Check everything that needs neither model nor data: files, counts, metrics, attacks, identity, audit.

    Faults go to ``report.faults``.

    Raises:
        InputError: the record names something unknown here, such as a defense.
    """
    for what, claim in CLAIMS.items():
        before = len(report.faults)
        try:
            report.faults += claim(subject)
        except RecordError as error:
            report.faults.append(str(error).replace(f"{subject.run.path}/", ""))
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            # A record from elsewhere may lack fields that every run of this suite writes.
            report.faults.append(f"{what}: cannot be recomputed ({one_line(error)})")
        if what == "files" and len(report.faults) > before:
            # The other checks would read the damaged files.
            return
        report.checked.append(what)
    if not (subject.run.path / MANIFEST).exists():
        report.notes.append(f"no {MANIFEST}: the run's identity was not checked")


def leave_metrics(subject: Subject, report: Report, names: Sequence[str]) -> None:
    """Report which of these metrics the record has: they do not follow from outcomes and were not checked."""
    if others := [name for name in names if name in subject.record.metrics]:
        report.not_looked_at.append(f"metrics that no outcomes give: {', '.join(others)}")
    if subject.record.report is not None and not subject.evaluated:
        report.not_looked_at.append("what the defense reports about its training")


def check_labels(subject: Subject, report: Report) -> None:
    """Check what needs the labels of the data set: counts by class, and numbers of points.

    Raises:
        InputError: the data set is missing.
    """
    found = subject.measured
    cells = {cell.attack: cell.n for cell in subject.record.cells if cell.attack != CLEAN}
    for attack, count in found:
        if cells.get(attack.text) != count:
            said = cells.get(attack.text)
            report.faults.append(f"{attack.text}: on {said} points, the configuration says {count}")
    clean, robust = read_outcomes(subject.run.path / OUTCOMES)
    texts = [attack.text for attack, _ in found]
    if not report.faults and subject.record.per_class != per_class_counts(
        subject.run.data, clean[-1], robust[-1], texts
    ):
        report.faults.append("per_class: the stored outcomes and the labels give other counts")
    table = subject.record.report
    if subject.evaluated and table is not None and table.tables != by_group(subject.run.data, clean[-1]):
        report.faults.append("report: the stored outcomes give other accuracies by group")
    report.checked.append("counts by class")


def without_weights(subject: Subject) -> bool:
    """Whether all of the run's weights were left out: such a run can only be trained again."""
    names = {stage.weights for stage in subject.record.stages} | {WEIGHTS}
    return not subject.evaluated and not any((subject.run.path / name).exists() for name in names)


def _files(subject: Subject) -> Iterator[str]:
    directory = subject.run.path
    if faults := list(beyond_the_data(subject)):
        yield from faults
        return
    # If a run is stored without its weights, other files may have been left out too.
    thin = without_weights(subject)
    for problem in check_run(directory).problems:
        if not (thin and problem.endswith(": missing") and problem[:-9] not in (RECORD, OUTCOMES)):
            yield problem


def _weights(subject: Subject) -> Iterator[str]:
    """A line if the final weights are not those of the last stage, or a copied file not the evaluated one."""
    path, record = subject.run.path, subject.record
    if subject.evaluated:
        spec = record.stages[0].spec
        if spec.get("copied") and digest_of(path / WEIGHTS) != spec.get("weights_sha256"):
            yield f"{WEIGHTS}: not the weights that were evaluated: their SHA-256 differs"
        return
    for position, stage in enumerate(record.stages):
        if stage.index != position or stage.weights != f"{STAGES}/{position}.safetensors":
            yield f"stage {stage.index} is at position {position}, with weights {stage.weights!r}"
            return
    last = path / record.stages[-1].weights
    if last.is_file() and (path / WEIGHTS).is_file() and not _same_tensors(last, path / WEIGHTS):
        yield f"{WEIGHTS}: not the weights of the last stage, {record.stages[-1].weights}"


def _same_tensors(one: Path, other: Path) -> bool:
    if digest_of(one) == digest_of(other):
        return True
    return weights_digest(load_file(one)) == weights_digest(load_file(other))


def _configured(subject: Subject) -> Iterator[str]:
    """A line for each attack, protocol or stage that does not follow from the configuration."""
    record, roles = subject.record, subject.attacks
    seen = {attack.text: attack.training_text for attack in roles["seen"]}
    expected = [
        attack_entry(attack, role, seen.get(attack.text)) for role in get_args(Role) for attack in roles[role]
    ]
    if record.attacks != expected:
        named, meant = [entry.text for entry in record.attacks], [entry.text for entry in expected]
        other = [text for text in meant if text not in named]
        what = f": {other[0]} is missing" if other else ""
        yield f"attacks: not those that the configuration resolves to{what}"
        return
    texts = [attack.text for attack in subject.every]
    if (protocol := protocol_of(texts, subject.points, record.config.get("abstain"))) != record.protocol:
        yield f"protocol: {record.protocol!r}, its attacks and points give {protocol!r}"
    yield from threat_faults(record)
    if not subject.evaluated:
        yield from _trained(subject)


def _trained(subject: Subject) -> Iterator[str]:
    """A line for each wrong stage, and for a wrong mark as target-aware."""
    record, config = subject.record, subject.run.config
    texts = [attack.text for attack in subject.attacks["seen"]]
    met = [[text] for text in texts] if config.regime == "continual" else [texts]
    if [stage.attacks for stage in record.stages] != [[], *met]:
        yield "stages: not those that the sequence and the regime give"
    if registry.resolve(config.defense)[0].info.target_aware != config.target_aware:
        yield f"target_aware: {config.target_aware} is wrong for {config.defense}"
    for stage in record.stages[1:]:
        if stage.spec.get("defense") != config.defense:
            yield f"stage {stage.index} has defense {stage.spec.get('defense')!r}, not {config.defense!r}"


def _metrics(subject: Subject) -> Iterator[str]:
    record = subject.record
    found = metrics_given(record, *read_outcomes(subject.run.path / OUTCOMES))
    if not subject.evaluated:
        found |= transfer_metric(record.audit.probes, [attack.text for attack in subject.attacks["seen"]])
    claimed = {key: value for key, value in record.metrics.items() if key not in OF_THE_MODEL}
    for key in sorted({*found, *claimed}):
        if key not in claimed or key not in found or not equal(claimed[key], found[key]):
            said, meant = claimed.get(key, "not there"), found.get(key, "nothing of this name")
            yield f"metrics: {key} is {said}, the stored outcomes give {meant}"


def _passes(subject: Subject) -> Iterator[str]:
    """A line for each cell with more passes than its attack can take; see also `implausible`."""
    infos = {attack.text: attack for attack in subject.every}
    classes = int(subject.record.environment["data"]["classes"])
    for cell in subject.record.cells:
        attack = infos.get(cell.attack)
        most: Sequence[int] | None = (JUDGED_BY * cell.n, 0)
        if attack is not None:
            declared = attack.info.passes(attack.knobs, classes)
            most = declared and [LEEWAY * (count + 1) * cell.n for count in declared]
        if most and (cell.forwards > most[0] or cell.backwards > most[1]):
            yield (
                f"stage {cell.stage}, {cell.attack}: {cell.forwards} forward and {cell.backwards} backward "
                f"passes, no more than {most[0]} and {most[1]} are possible on {cell.n} points"
            )


def _classes(subject: Subject) -> Iterator[str]:
    """A line for each count by class that does not add up (checking more needs labels)."""
    if not subject.record.per_class:
        yield "per_class: empty"
    yield from class_faults(subject.record)


CLAIMS: Mapping[str, Claim] = {
    "files": _files,
    "weights": _weights,
    "attacks and protocol": _configured,
    "passes": _passes,
    "metrics": _metrics,
    "sums by class": _classes,
    "identity": check_identity,
    "audit": check_audit,
}
