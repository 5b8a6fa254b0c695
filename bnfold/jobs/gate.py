"""The gate of a pipeline: several models, and which of their findings count.

What the rules find is set aside where the settings suppress it, then where the baseline knows it.
What is left decides. A command that makes another file of a model looks at it here first.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from bnfold.audit import Finding, Severity, baseline, joined
from bnfold.audit.baseline import Entry
from bnfold.audit.selection import Suppression, suppress
from bnfold.errors import BnfoldError, SettingsError, UnreadableModelError
from bnfold.fleet.results import how_many_read
from bnfold.folding.plan import Plan
from bnfold.jobs.inspect import Inspection, inspect_file, inspect_model, require_data
from bnfold.jobs.settings import NEVER, Settings
from bnfold.jobs.staging import check_target, is_stream, write_text
from bnfold.model.container.guard import read_whole
from bnfold.model.container.model_file import ModelFile
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where, is_url
from bnfold.model.container.search import models_at
from bnfold.model.graph import show
from bnfold.serialize import SCHEMA_VERSION, Shown, plain

Json: TypeAlias = dict[str, Any]

_MOST_BYTES = 64 << 20  # of a baseline: some half a million findings


@dataclass(frozen=True)
class Unreadable:
    """What was asked for and could not be read; the text of the error names it.

    `may_have_run` is true where the model was to be run over data: it may have been by then.
    """

    path: Where
    error: BnfoldError
    may_have_run: bool = False


@dataclass(frozen=True, repr=False)
class Outcome(Shown):
    """What came of the models.

    Attributes:
        models: those that were read, in a stable order, with the findings that count.
        unreadable: the others.
        unused: suppressions that cover nothing.
        stale: entries of the baseline that are found no more.
        fail_on: from which severity on a finding fails the gate; None is never.
    """

    models: tuple[Inspection, ...]
    unreadable: tuple[Unreadable, ...] = ()
    unused: tuple[Suppression, ...] = ()
    stale: tuple[Entry, ...] = ()
    fail_on: Severity | None = Severity.ERROR

    def __bool__(self) -> bool:
        """Whether all models were read, and no finding is as bad as `fail_on`."""
        findings = (finding for model in self.models for finding in model.findings)
        return self.exit_code(findings, self.fail_on) == 0

    @property
    def brief(self) -> str:
        """Whether it passed, and why not, in a line."""
        failing = [
            f"{model.path}: {one.code} {one.name} on {show(one.layer)}"
            for model in self.models
            for one in model.findings
            if fails(one.severity, self.fail_on)
        ]
        said = [*(str(one.error) for one in self.unreadable), *failing]
        more = f" and {len(said) - 1} more" if len(said) > 1 else ""
        reason = f"failed, {said[0]}{more}" if said else "passed" if self else "nothing to read"
        return f"{reason}; {how_many_read(self.summary)}"

    @property
    def summary(self) -> Json:
        """How many models were found, and how many of them could be read."""
        return {"found": len(self.models) + len(self.unreadable), "read": len(self.models)}

    def exit_code(self, findings: Iterable[Finding], fail_on: Severity | None) -> int:
        """2 where something was not read, 1 where a finding is as bad as `fail_on`, else 0."""
        if self.unreadable or not self.models:
            return 2
        return int(any(fails(finding.severity, fail_on) for finding in findings))

    def to_dict(self) -> dict[str, Any]:
        """The JSON report of `bnfold inspect`, of which all others are made."""
        failed = [{"path": str(one.path), "message": str(one.error)} for one in self.unreadable]
        return report(plain(self.models), failed)


def report(models: Sequence[Json], unreadable: Sequence[Json]) -> Json:
    """The JSON report on models of which each has its own."""
    return {
        "schema_version": SCHEMA_VERSION,
        "summary": {"found": len(models) + len(unreadable), "read": len(models)},
        "models": list(models),
        "unreadable": list(unreadable),
    }


@dataclass(frozen=True)
class InputFindings:
    """What counts of the findings on a model of which a command makes something.

    Attributes:
        findings: the errors, and whatever else is as bad as `fail_on`.
        fail_on: from which severity on nothing is made of the model; None is never.
        problem: why the rules could not be asked, in a sentence; None where they were.
    """

    findings: tuple[Finding, ...] = ()
    fail_on: Severity | None = None
    problem: str | None = None

    @property
    def stops(self) -> bool:
        """Whether nothing is to be made of the model; what was not looked at stops it too."""
        unknown = self.problem is not None and self.fail_on is not None
        return unknown or any(fails(one.severity, self.fail_on) for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """What the JSON report of a command has of it."""
        found = {
            "findings": self.findings,
            "fail_on": NEVER if self.fail_on is None else self.fail_on,
            "stopped_by_findings": self.stops,
            "not_audited": self.problem,
        }
        return {name: plain(value) for name, value in found.items()}


def of_input(model: ModelFile, settings: Settings, decided: Plan | None) -> InputFindings:
    """The findings on one model that a command reads, as `check` counts them.

    `decided` is the plan for it, where it is that of `inspect`; without it the file is read again.

    Raises:
        SettingsError: the baseline is missing or damaged.
    """

    def inspect_open(
        path: Where, *, sha256: Sequence[str], keras: str | None, **asked: Any
    ) -> Inspection:
        if decided is None:
            return inspect_file(path, sha256=sha256, keras=keras, **asked)
        return inspect_model(model, decided, **asked)

    outcome, fail_on = check([model.given], settings, inspect_open), settings.fail_on
    if outcome.unreadable:
        return InputFindings((), fail_on, str(outcome.unreadable[0].error))
    bad = Severity.ERROR
    found = (finding for model in outcome.models for finding in model.findings)
    told = tuple(one for one in found if fails(one.severity, bad) or fails(one.severity, fail_on))
    return InputFindings(told, fail_on)


def fails(severity: Severity, fail_on: Severity | None) -> bool:
    """Whether a finding of this severity is as bad as `fail_on`, or worse; none is at None."""
    return fail_on is not None and severity.rank <= fail_on.rank


def check(
    paths: Sequence[Where], settings: Settings, inspect: Callable[..., Inspection] = inspect_file
) -> Outcome:
    """Inspect the models at `paths`, which are files, Keras directories, or folders to search.

    Each may be a URL in a store.

    `inspect` is called as `inspect_file` is.

    Raises:
        SettingsError: the baseline is missing or damaged.
        VerificationImpossibleError: models are to be run, and what is needed is not installed.
    """
    where = settings.baseline
    known = frozenset() if where is None else _read(where)
    raw = _inspect(paths, settings, inspect)
    outcome = _suppress(raw, settings)
    if where is None:
        return _joined(outcome)
    judged = _judged(known, where, [str(one.path) for one in raw.models], settings)
    stale = sorted(judged - _entries(raw.models, where))
    return _joined(replace(_compare(outcome, where, known), stale=tuple(stale)))


def write_baseline(paths: Sequence[Where], settings: Settings, target: Path) -> Outcome:
    """Inspect as `check` does, and let all that is found be known from now on.

    Of an earlier baseline in `target`, what this run says nothing about stays: other models, other
    rules. If anything cannot be read, nothing is written.

    Raises:
        SettingsError: what is there is no baseline.
        OutputError: it cannot be written there.
    """
    _earlier(target)  # before models are read for nothing
    outcome = _suppress(_inspect(paths, settings), settings)
    if outcome.unreadable:
        return _joined(outcome)
    entries = write_baseline_of(plain(_joined(outcome).models), settings, target)
    return _joined(_compare(outcome, target, entries))


def _earlier(target: Path) -> frozenset[Entry]:
    """The baseline that a new one is to replace. Raises SettingsError and OutputError."""
    check_target(target, "text", force=True)
    return _read(target) if target.exists() and not is_stream(target) else frozenset()


def write_baseline_of(models: Iterable[Json], settings: Settings, target: Path) -> frozenset[Entry]:
    """Write what `write_baseline` writes, of the JSON reports on models; its entries.

    Raises:
        SettingsError: what is there is no baseline.
        OutputError: it cannot be written there.
    """
    earlier = _earlier(target)
    entries = {
        Entry(_path_from(target.parent, model["path"]), finding["layer"], one["code"])
        for model in models
        for finding in model["findings"]
        for one in (finding, *finding["consequences"])
    }
    judged = _judged(earlier, target, [model["path"] for model in models], settings)
    every = frozenset(entries | (earlier - judged))
    write_text(target, baseline.dump(every))
    return every


def _joined(outcome: Outcome) -> Outcome:
    """Causes and their consequences as one finding each, when it is known which of them count."""
    models = (replace(model, findings=joined(model.findings)) for model in outcome.models)
    return replace(outcome, models=tuple(models))


def _inspect(
    paths: Sequence[Where], settings: Settings, inspect: Callable[..., Inspection] = inspect_file
) -> Outcome:
    if settings.run is not None:
        require_data()
    found, unreadable = files(paths, settings.exclude)
    rules, models = settings.rules(), []
    for file in found:
        try:
            inspected = inspect(
                file,
                rules=rules,
                thresholds=settings.thresholds,
                target_dtype=settings.target_dtype,
                run=settings.run,
                join=False,
                sha256=settings.sha256,
                keras=settings.keras,
            )
        except BnfoldError as error:
            unreadable.append(Unreadable(file, error, may_have_run=settings.run is not None))
        else:
            models.append(inspected)
    return Outcome(tuple(models), tuple(unreadable), fail_on=settings.fail_on)


def files(paths: Sequence[Where], exclude: Sequence[str]) -> tuple[list[Where], list[Unreadable]]:
    """The models at these paths, each once, and the folders that hold none or cannot be read."""
    files: dict[str, Where] = {}
    unreadable: list[Unreadable] = []

    def skip(error: OSError) -> None:
        where = Path(error.filename)
        reason = f"{printable(str(where))}: {error.strerror}"
        unreadable.append(Unreadable(where, UnreadableModelError(reason)))

    for path in paths:
        try:
            for file in models_at(path, exclude, skip):
                name = file.url if isinstance(file, Remote) else os.path.abspath(file)
                files.setdefault(name, file)
        except BnfoldError as error:
            unreadable.append(Unreadable(path, error))
    return list(files.values()), unreadable


def _suppress(raw: Outcome, settings: Settings) -> Outcome:
    """Set aside what the settings suppress; what nothing used is told if all models were read."""
    models: list[Inspection] = []
    used: set[Suppression] = set()
    for model in raw.models:
        name = _path_from(settings.root, str(model.path))
        here = [one for one in settings.suppressions if one.concerns(name)]
        used |= {one for one in here if any(map(one.covers, model.findings))}
        kept, suppressed = suppress(model.findings, here)
        models.append(replace(model, findings=kept, suppressed=suppressed))
    codes = [rule.code for rule in settings.rules()]
    unused = [
        one
        for one in settings.suppressions
        if one not in used and any(code.startswith(one.rules) for code in codes)
    ]
    return replace(raw, models=tuple(models), unused=() if raw.unreadable else tuple(unused))


def _compare(outcome: Outcome, where: Path, known: frozenset[Entry]) -> Outcome:
    """Set aside what a baseline knows."""
    models = []
    for model in outcome.models:
        new, old = baseline.set_aside(
            model.findings, _path_from(where.parent, str(model.path)), known
        )
        models.append(replace(model, findings=new, suppressed=(*model.suppressed, *old)))
    return replace(outcome, models=tuple(models))


def _entries(models: Sequence[Inspection], where: Path) -> frozenset[Entry]:
    """All findings as a baseline at `where` would know them."""
    return frozenset(
        Entry.of(finding, _path_from(where.parent, str(model.path)))
        for model in models
        for finding in model.findings
    )


def _judged(
    known: frozenset[Entry], where: Path, paths: Iterable[str], settings: Settings
) -> frozenset[Entry]:
    """The entries of a baseline on which this run has the last word.

    They are those of its rules on the models that it read, and all of models that are gone.
    """
    read = {_path_from(where.parent, path) for path in paths}
    codes = {rule.code for rule in settings.rules()}
    return frozenset(
        entry
        for entry in known
        if (entry.model in read and entry.rule in codes)
        or not (is_url(entry.model) or os.path.lexists(where.parent / entry.model))
    )


def _read(path: Path) -> frozenset[Entry]:
    try:
        return baseline.parse(read_whole(path, _MOST_BYTES))
    except FileNotFoundError:
        reason = "no such baseline; --write-baseline makes one"
    except OSError as error:
        reason = error.strerror or str(error)
    except BnfoldError as error:
        reason = str(error)
    raise SettingsError(f"{printable(str(path))}: {reason}")


def _path_from(folder: Path, path: str) -> str:
    """The path as seen from a folder, with slashes; as it is where there is no way (Windows)."""
    if is_url(path):
        return path
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return Path(path).as_posix()
