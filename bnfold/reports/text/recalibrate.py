"""Recalibrations for people."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bnfold.jobs.recalibrate import RecalibrationReport
from bnfold.model.batchnorm import Vector
from bnfold.model.container.printing import printable
from bnfold.model.graph import show
from bnfold.model.moments import spread
from bnfold.observation.estimate import Change, ScaleCheck
from bnfold.reports import terminal
from bnfold.reports.parts import Group, Part, Text

_CHECKED = "checked: the stored statistics match the observed inputs"
_FEW_SAMPLES = 1000
_WORSE = "; --allow-worse writes it anyway"
_REMEDY = "; prepare them as for training, or continue with --allow-other-scale"


def recalibration(report: RecalibrationReport) -> Part:
    """The report on a recalibration: how far off each layer was, what was kept and written."""
    parts: list[Part] = [] if report.check is None else [*_estimated(report)]
    target = printable(str(report.target))
    parts += [Text(score.sentence) for score in report.scores]
    if report.labels_problem is not None:
        said = f"not used as labels: {report.labels_problem}"
        parts.append(terminal.indented(said, "dim"))
    if report.written:
        parts.append(Text(_CHECKED, style="green"))
        parts.append(Text(f"wrote {target}"))
    else:
        worse = any(score.worse for score in report.scores)
        remedy = _WORSE if worse else "" if report.check is not None else _REMEDY
        parts.append(Text(f"{report.refusal}{remedy}", style="red"))
        parts.append(Text(f"{target} was not written", style="red"))
    return Group(*parts)


def _estimated(report: RecalibrationReport) -> Iterator[Part]:
    count, total = len(report.recalibrated), len(report.recalibrated) + len(report.kept)
    yield Text(
        f"estimated {count} of {total} BatchNormalization {terminal.plural('layer', total)} "
        f"from {report.samples} samples, in {report.passes} "
        f"{terminal.plural('step', report.passes)} that cost {_runs(report.work)}"
    )
    yield _table(report.recalibrated)
    yield from (terminal.indented(line, "dim") for line in _notes(report))


def _runs(work: float) -> str:
    number = f"{work:.2g}"
    return f"{number} {terminal.plural('run', 1 if number == '1' else 2)}"


def _table(changes: Sequence[Change]) -> Part:
    numbers = ("channels", "mean shift", "variance ratio", "KL in nats")
    table = terminal.Columns(
        ("layer", *numbers), numbers=numbers, optional=("channels", "variance ratio", "mean shift")
    )
    for change in changes:
        found = change.divergence
        table.add_row(
            Text(printable(show(change.batchnorm.path))),
            str(len(change.mean)),
            _shown("{median:.2g}, at most {max:.2g}", found.shift),
            _shown("{min:.2g} to {max:.2g}", found.ratio),
            _shown("{median:.2g}, at most {max:.2g}", found.kl),
        )
    said = "over the channels; the mean shift is in recorded standard deviations"
    return Group(table, Text(said, style="dim"))


def _shown(pattern: str, values: Vector) -> str:
    numbers = {name: math.nan if n is None else n for name, n in spread(values).items()}
    return pattern.format(**numbers)


def _notes(report: RecalibrationReport) -> Iterator[str]:
    """What a reader should know beside the table."""
    yield from map(printable, report.notes)
    for change in report.recalibrated:
        if change.note is not None:
            yield f"{printable(show(change.batchnorm.path))}: {change.note}"
    yield from _on_the_scale(report.scale)
    constant = sum(int(np.count_nonzero(c.variance == 0)) for c in report.recalibrated)
    if constant:
        yield f"{constant} {terminal.plural('channel', constant)} never changed: variance 0"
    for reason, alike in terminal.grouped(report.kept, lambda kept: kept.reason).items():
        yield f"kept {terminal.names([show(k.batchnorm.path) for k in alike])}: {printable(reason)}"
    if report.samples < _FEW_SAMPLES:
        yield (
            f"{report.samples} samples determine a mean to about {report.samples**-0.5:.2g} "
            "standard deviations; a few thousand are better"
        )


def _on_the_scale(checks: Sequence[ScaleCheck]) -> Iterator[str]:
    """What --allow-other-scale let pass, and why nothing could be checked."""
    yield from (check.sentence for check in checks if check.sentence is not None)
    unknown = [check for check in checks if check.scale is None]
    if len(unknown) < len(checks):
        return
    reasons = {f"{printable(show(one.layer))}: {one.problem}" for one in unknown[:3]}
    because = "; ".join(sorted(reasons)) or "no layer is known to normalize them first"
    yield f"the scale of the data could not be checked ({because}): make sure that it is right"
