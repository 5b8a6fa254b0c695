"""`bnfold inspect`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli import completion, many, places
from bnfold.cli.options import (
    CONTEXT,
    FAIL_ON,
    FILE,
    SETTINGS_FILE,
    SOURCE,
    data_run,
    having,
    keras_option,
    limit,
    limitable,
    over_data,
    pinned,
    settings_file,
)
from bnfold.cli.output import ending_says, print_text, put, refuse_unwritable, reported, say
from bnfold.cli.recorder import Recorder, current, drawn
from bnfold.fleet.results import INSPECTED, Results
from bnfold.fleet.row import Row, Task
from bnfold.supervision import link

if TYPE_CHECKING:
    from bnfold.audit import Finding, Severity
    from bnfold.jobs.gate import Outcome
    from bnfold.jobs.inspect import Inspection
    from bnfold.jobs.settings import Settings
    from bnfold.model.container.remote import Where

_LAYER_FORMATS = ("text", "json")
FORMATS = (*_LAYER_FORMATS, "jsonl", "sarif", "github", "junit", "markdown", "html")
_BY_ENDING = {
    ".html": "html",
    ".sarif.json": "sarif",
    ".json": "json",
    ".jsonl": "jsonl",
    ".md": "markdown",
    ".sarif": "sarif",
    ".xml": "junit",
}
"""What a report is that is written to a file whose name ends so; the first one counts."""
_OVERRIDING = ("select", "ignore", "exclude", "baseline", "target_dtype", "keras")
"""The options that go before the settings of a file as they are, each by itself."""
_RUNNING = ("data", "batch", "trust", "imports")


def _codes(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """The codes in options that may be repeated and hold several, with commas between them."""
    if not values:
        return ()
    from bnfold.audit.selection import codes
    from bnfold.errors import SettingsError

    try:
        return codes([word.strip() for value in values for word in value.split(",")])
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None


_SELECTION = (
    click.option(
        "--select",
        metavar="CODES",
        multiple=True,
        callback=_codes,
        shell_complete=completion.rules,
        help="Apply only these rules: codes, prefixes of codes, or names, such as "
        "BN1,BN403,non-finite. Repeatable.  [default: all]",
    ),
    click.option(
        "--ignore",
        metavar="CODES",
        multiple=True,
        callback=_codes,
        shell_complete=completion.rules,
        help="Skip these rules. If --select and --ignore both match a rule, the longer code wins. "
        "Repeatable.",
    ),
    click.option(
        "--fail-on",
        type=click.Choice(FAIL_ON),
        help="Exit with 1 if there is a finding this bad or worse.  [default: error]",
    ),
    click.option(
        "--target-dtype",
        type=click.Choice(["float16", "bfloat16", "float32"]),
        help="The dtype that the model will run in, for the rules on overflow.  "
        "[default: that of each layer]",
    ),
    click.option(
        "--exclude",
        metavar="PATTERN",
        multiple=True,
        help="In folders, skip what matches this shell pattern, by name or path. Repeatable.",
    ),
)

_SETTINGS = (
    click.option(
        "--baseline",
        metavar="FILE",
        type=FILE,
        help="Ignore findings listed in this baseline.",
    ),
    click.option(
        "--write-baseline",
        metavar="FILE",
        type=FILE,
        help="Write the current findings to FILE as the new baseline.",
    ),
    *SETTINGS_FILE,
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    return having(command, *_SELECTION, keras_option, pinned, *_SETTINGS, reported(*FORMATS))


@click.command(cls=many.Command, context_settings=CONTEXT)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=SOURCE)
@click.option(
    "--layer",
    metavar="NAME",
    shell_complete=completion.layers,
    help="Show this one layer in full, channel by channel, as text or JSON.",
)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="As text, list all layers of a model that has hundreds, not only what deviates.",
)
@_options
@over_data(required=False)
@many.many(writes=False, searches=False)
@limitable
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    models: "Sequence[Where]",
    layer: str | None,
    every: bool,
    write_baseline: Path | None,
    format_: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Show every BatchNormalization: where it is, its settings, statistics, whether it folds.

    A MODEL that is a folder, or one in a store (s3://bucket/models), is searched for .keras, .h5
    and .hdf5 files and Keras directories; SavedModels in it are reported as not read.
    'bnfold rules' lists the rules.

    \b
    Examples:
      bnfold inspect model.keras
      bnfold inspect model.keras --layer backbone/bn1
      bnfold inspect model.keras --data train.npz
      bnfold inspect models --select BN1,BN4 --ignore BN107 --fail-on warning
      bnfold inspect models --write-baseline bnfold-baseline.json
      bnfold inspect models --baseline bnfold-baseline.json --output bnfold.sarif

    \b
    Exit codes: 0 success, 1 a finding as bad as --fail-on, 2 wrong usage or something unreadable.
    """
    from bnfold.jobs import gate

    format_ = format_ or ending_says(output, _BY_ENDING)
    _refuse_contradictions(layer, format_, write_baseline, options)
    settings = _settings(options)
    if output is not None:
        read = (*models, settings.file, settings.baseline, options["data"], write_baseline)
        refuse_unwritable(output, read)
    run = many.Run({**options, "output": output}, format_, settings.run is not None, INSPECTED)
    is_asked_for = run.but(quiet=False).is_asked_for() or format_ == "jsonl"
    if layer is None and (places.is_many(models) or is_asked_for):
        tasks = many.tasks(ctx, models, run, exclude=settings.exclude)
        with run.paged(len(tasks)) as paged:
            ctx.exit(_inspect_many(tasks, settings, write_baseline, paged))
    limit()
    if layer is not None and settings.run is not None:
        _refuse_unknown_layer(models, layer, options["sha256"])
    if write_baseline is None:
        outcome = gate.check(models, settings)
    else:
        outcome = gate.write_baseline(models, settings, write_baseline)
    link.reporting()
    if not outcome.models and len(outcome.unreadable) == 1:
        raise outcome.unreadable[0].error
    if (recorder := current()) is not None:
        _record(recorder, outcome, settings, every=every)
        ctx.exit(outcome.exit_code(outcome.models[0].findings, settings.fail_on))
    _warn(outcome)
    if write_baseline is not None:
        _say_whether_written(write_baseline, is_written=not outcome.unreadable)
    findings = [finding for model in outcome.models for finding in model.findings]
    if layer is not None:
        findings = _show_layer(outcome.models, layer, format_, output)
    else:
        _show_models(outcome, format_, settings.fail_on, output, every=every)
    ctx.exit(outcome.exit_code(findings, settings.fail_on))


def _record(recorder: Recorder, outcome: "Outcome", settings: "Settings", *, every: bool) -> None:
    """Keep what was found out about one model among many."""
    (model,) = outcome.models
    recorder.report = model.to_dict()
    recorder.notes = {
        "unused": [settings.suppressions.index(one) for one in outcome.unused],
        "stale": [list(entry) for entry in outcome.stale],
    }
    if how := recorder.wanted.get("text"):
        from bnfold.reports.text import inspect as inspect_text

        text = inspect_text.inspection(model, how["width"], every=every)
        recorder.views["text"] = drawn(text, how)
    if how := recorder.wanted.get("html"):
        from bnfold.reports import html

        is_alone, number = how["is_alone"], how["number"]
        page = html.inspections([model]) if is_alone else html.fragment(model, number)
        recorder.views["html"] = page


def _inspect_many(
    tasks: list[Task], settings: "Settings", write_baseline: Path | None, run: many.Run
) -> int:
    """Inspect each of many models in a worker; the exit code."""
    from bnfold.jobs import gate

    if settings.run is not None:
        run.require("inspect --data")
    is_written = False
    if write_baseline is None:
        results = run.results(tasks)
    else:
        results = run.but(is_silent=True).results(tasks)
        is_written = not results.failed
        if is_written:
            gate.write_baseline_of(results.report["models"], settings, write_baseline)
            tasks = [one.with_options(("--baseline", str(write_baseline))) for one in tasks]
            results = run.but(resume=None).results(tasks, [write_baseline])
        else:
            results = replace(results, rows=list(map(run.tell, results.rows)))
            run.tell_end(results.rows)
    _warn(_merged(results.rows, settings))
    if not results.done and len(results.rows) == len(tasks) == 1 and run.is_for_eyes:
        return results.exit_code  # all that a table would say was said
    if write_baseline is not None:
        _say_whether_written(write_baseline, is_written=is_written)
    _show_many(results, run, settings)
    return results.exit_code


def _say_whether_written(baseline: Path, *, is_written: bool) -> None:
    unread = "not written, because not everything could be read"
    say(f"{baseline}: {'written' if is_written else unread}")


def _merged(rows: Sequence[Row], settings: "Settings") -> "Outcome":
    """What was not read, and what of the settings and the baseline concerns none of the models."""
    from bnfold.audit.baseline import Entry
    from bnfold.errors import BnfoldError
    from bnfold.jobs.gate import Outcome, Unreadable
    from bnfold.model.container.remote import located

    failed = [Unreadable(located(row.path), BnfoldError(row.error)) for row in rows if row.error]
    unused = set(range(0 if failed else len(settings.suppressions)))
    stale: set[Entry] = set()
    for row in rows:
        unused &= set(row.notes.get("unused", ()))
        stale |= {Entry(*entry) for entry in row.notes.get("stale", ())}
    suppressions = tuple(settings.suppressions[number] for number in sorted(unused))
    return Outcome((), tuple(failed), suppressions, tuple(sorted(stale)))


def _show_many(results: Results, run: many.Run, settings: "Settings") -> None:
    from bnfold.reports import terminal

    report = results.report

    def rendered() -> str | Iterable[str]:
        if run.format == "html":
            from bnfold.reports import html

            return html.together(results, ran=settings.run is not None)
        return _rendered(report, run.format, settings.fail_on)

    run.show(results, terminal.totals(report), rendered)


def _refuse_contradictions(
    layer: str | None, format_: str, write_baseline: Path | None, options: dict[str, Any]
) -> None:
    if layer is not None and format_ not in _LAYER_FORMATS:
        raise click.UsageError(f"--layer has no report as {format_}, only text and json")
    if layer is not None and write_baseline is not None:
        raise click.UsageError("--layer shows one layer, and --write-baseline is about all")
    if write_baseline is not None and options["baseline"] is not None:
        raise click.UsageError("--write-baseline contradicts --baseline")
    if write_baseline is not None and options["fail_fast"]:
        raise click.UsageError(
            "--write-baseline is about all models, and --fail-fast leaves some out"
        )


def _settings(options: dict[str, Any]) -> "Settings":
    """The settings of the file, if there is one, under those of the command line."""
    from bnfold.audit.selection import chosen
    from bnfold.jobs import settings

    found = settings_file(options["config"], no_config=options["no_config"])
    given = {name: options[name] for name in _OVERRIDING if options[name]}
    if options["select"]:  # whoever asks for a rule wants it, whatever the file ignores
        given["ignore"] = options["ignore"]
    if options["fail_on"] is not None:
        given["fail_on"] = settings.severity(options["fail_on"])
    run = data_run(**{name: options[name] for name in _RUNNING})
    found = replace(found, **given, run=run, sha256=options["sha256"])
    if not chosen(found.select, found.ignore):
        raise click.UsageError("no rule is left of those that are selected: all are ignored")
    if not found.rules():
        raise click.UsageError("all rules that are selected need --data")
    return found


def _warn(outcome: "Outcome") -> None:
    """Say on standard error what was not read, and which settings and entries do nothing."""
    lines = [str(one.error) for one in outcome.unreadable]
    lines += [
        f"warning: nothing is suppressed by rules {', '.join(one.rules)} for layer {one.layer!r}"
        + (f" of model {one.model!r}" if one.model != "*" else "")
        for one in outcome.unused
    ]
    lines += [
        f"warning: the baseline has {entry.rule} on {entry.layer!r} of {entry.model!r}, which is "
        "found no more"
        for entry in outcome.stale
    ]
    for line in lines:
        say(line)


def _show_models(
    outcome: "Outcome",
    format_: str,
    fail_on: "Severity | None",
    output: Path | None,
    *,
    every: bool,
) -> None:
    if format_ == "text":
        from bnfold.reports.text import inspect as inspect_text

        (model,) = outcome.models
        print_text(lambda width: inspect_text.inspection(model, width, every=every), output)
    elif format_ == "html":
        html = import_module("bnfold.reports.html")  # which is asked for again where it failed
        put(html.inspections(outcome.models, outcome.unreadable), output)
    else:
        put(_rendered(outcome.to_dict(), format_, fail_on), output)
    if output is not None:
        from bnfold.reports import terminal

        say(f"{output}: written; {terminal.totals(outcome.to_dict())}")


def _rendered(
    report: dict[str, Any], format_: str, fail_on: "Severity | None"
) -> str | Iterable[str]:
    """The report in a format that is made of JSON; its module is imported now."""
    arguments = {"fail_on": fail_on} if format_ == "junit" else {}
    renderer = import_module(f"bnfold.reports.formats.{format_}")
    text: str | Iterable[str] = renderer.inspections(report, **arguments)
    return text


def _refuse_unknown_layer(models: "Sequence[Where]", name: str, sha256: Sequence[str]) -> None:
    """Refuse a name that no layer has before the model runs, which takes long."""
    from bnfold.jobs.inspect import inspect_file

    if len(models) == 1 and isinstance(models[0], Path) and not models[0].is_dir():
        found = inspect_file(models[0], rules=(), sha256=sha256)
        if found.layer(name) is None:
            raise click.UsageError(_no_such_layer(found, name))


def _show_layer(
    models: "Sequence[Inspection]", name: str, format_: str, output: Path | None
) -> "list[Finding]":
    """Show one layer; its findings."""
    from bnfold.reports.formats import json
    from bnfold.reports.text import inspect as inspect_text

    if len(models) != 1:
        raise click.UsageError("--layer takes exactly one MODEL")
    model = models[0]
    found = model.layer(name)
    if found is None:
        raise click.UsageError(_no_such_layer(model, name))
    if format_ == "json":
        put(json.layer(model, found), output)
    else:
        print_text(lambda _: inspect_text.layer(model, found), output)
    return list(model.findings_on(found))


def _no_such_layer(model: "Inspection", name: str) -> str:
    import difflib

    from bnfold.reports import terminal

    paths = [decision.batchnorm.path for decision in model.plan.decisions]
    every = ["/".join(path) for path in paths]
    alike = [whole for whole, path in zip(every, paths, strict=True) if path[-1] == name]
    alike = alike or difflib.get_close_matches(name, every)
    if alike:
        hint = f"; did you mean {' or '.join(alike)}?"
    else:
        hint = f"; there are: {terminal.names(every)}" if every else ""
    return f"no single BatchNormalization is named {name!r}{hint}"
