"""Times of two models for people."""

from collections.abc import Sequence

from bnfold.jobs.bench import CONFIDENCE, BenchReport, LeftBehind, Result, Times
from bnfold.model.container.printing import printable
from bnfold.reports import terminal
from bnfold.reports.parts import Group, Part, Text
from bnfold.reports.text import export

_STYLES = {"faster": "green", "slower": "red"}
_COARSE = 1.1  # between the ends of an interval that leaves room for a difference worth having


def bench(report: BenchReport) -> Part:
    """The report on a comparison: how much faster B is in each runtime, then the times."""
    parts: list[Part] = [summary(result) for result in report.results]
    parts += [
        Text(f"{one.runtime}{_at(one.batch)}: left out, {printable(one.reason)}", style="yellow")
        for one in report.skipped
    ]
    parts += [Text(f"warning: {printable(note)}", style="yellow") for note in report.notes]
    parts += _warning(report)
    threads = "all" if report.threads is None else str(report.threads)
    left = [line for one in report.left_behind for line in _left_behind(one)]
    conditions = f"threads: {threads}, seed {report.seed}, {CONFIDENCE:.0%} intervals"
    return Group(
        *parts, _models(report), _table(report.results), *left, Text(conditions, style="dim")
    )


def summary(result: Result) -> Text:
    """One runtime at one batch size in a line, the ratio first."""
    lower, upper = result.interval
    text = Text(f"{result.runtime}{_at(result.batch)}: ")
    if result.verdict == "no difference":
        coarse = upper > _COARSE * lower
        text.append(f"no difference{' that could be resolved' if coarse else ''}: ")
    text.append(f"B takes {1 / result.ratio:.2f} of the time of A")
    if result.verdict == "faster":
        text.append(f", {result.ratio:.2f} times faster", style=_STYLES["faster"])
    if result.verdict == "slower":
        text.append(f", {1 / result.ratio:.2f} times slower", style=_STYLES["slower"])
    return text.append(f" (A/B {result.ratio:.3f}, {lower:.3f} to {upper:.3f})")


def _warning(report: BenchReport) -> list[Text]:
    unsteady = [f"{one.runtime}{_at(one.batch)}" for one in report.results if not one.steady]
    if not unsteady:
        return []
    fewer = "" if report.threads == 1 else ", --threads 1"
    return [
        Text(
            f"warning: times vary a lot ({'; '.join(unsteady)}), as they do under other load; "
            f"an idle machine{fewer} or more --seconds would help",
            style="yellow",
        )
    ]


def _left_behind(found: LeftBehind) -> list[Text]:
    """What a runtime has to compute for the layers that were or were not folded."""
    return [
        Text(f"{found.runtime} with {name}: {export.leftovers(layers)}", style="dim")
        for name, layers in (("A", found.a), ("B", found.b))
        if layers
    ]


def _at(batch: int | None) -> str:
    return "" if batch is None else f", batch {batch}"


def _models(report: BenchReport) -> Text:
    text = Text(f"A is {printable(str(report.a))}, B is ")
    if report.folded is None:
        return text.append(printable(str(report.b)))
    layers, total = report.folded
    if not layers:
        return text.append("the same model: nothing in it can be folded", style="yellow")
    return text.append(
        f"A with {layers} of {total} BatchNormalization {terminal.plural('layer', total)} folded"
    )


def _table(results: Sequence[Result]) -> terminal.Columns:
    headings = ("runtime", "batch", "", "median", "quartiles", "rounds")
    optional = ("rounds", "quartiles")
    table = terminal.Columns(headings, numbers=headings[1:], optional=optional)
    for result in results:
        calls = f" of {result.calls} calls" if result.calls > 1 else ""
        rounds = f"{result.rounds}{calls}"
        table.add_row(result.runtime, str(result.batch), "A", *_times(result.a), rounds)
        table.add_row("", "", "B", *_times(result.b))
    return table


def _times(times: Times) -> tuple[str, str]:
    quartiles = f"{duration(times.lower_quartile)} to {duration(times.upper_quartile)}"
    return duration(times.median), quartiles


def duration(seconds: float) -> str:
    """A time in the unit that suits it, with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} us"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"
