"""The same command for many models: its options, the workers, and one report on all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from bnfold.cli import garbage
from bnfold.cli import options as shared
from bnfold.cli.completion import WORDS
from bnfold.cli.options import FILE, having, limit, sources
from bnfold.cli.output import ending_says, print_text, put, refuse_unwritable, say
from bnfold.cli.places import check_place, is_many, is_product, places
from bnfold.cli.recorder import current
from bnfold.errors import BnfoldError, SettingsError
from bnfold.fleet import journal
from bnfold.fleet.results import INSPECTED, PROCESSED, Kind, Results
from bnfold.fleet.row import Json, Row, Task, digest, is_in_shard, shard_of
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where, is_url
from bnfold.serialize import parts_of
from bnfold.supervision import limits, link
from bnfold.version import __version__

if TYPE_CHECKING:
    from bnfold.cli.pages import Pages
    from bnfold.cli.progress import Progress
    from bnfold.cli.resuming import Resuming

_SECTIONS = {
    "Rules": (
        *("select", "ignore", "fail_on", "target_dtype", "baseline", "write_baseline"),
        *("config", "no_config"),
    ),
    "Samples, and code of models": (
        *("data", "labels", "test_data", "batch", "seed", "trust", "imports"),
    ),
    "Verification": ("rtol", "atol", "strict", "min_sqnr", "max_changed"),
    "Many models": (
        *("out_dir", "exclude", "jobs", "engine", "scheduler", "shard", "resume", "fail_fast"),
        *("full", "quiet"),
    ),
    "Report": ("format_", "output"),
    "Limits, and trouble": ("sha256", "timeout", "memory", "debug"),
}
"""What options are about; the help lists those of the command itself before them."""

BY_ENDING = {".json": "json", ".jsonl": "jsonl"}

IN_PROCESS = False
"""Whether tasks are done in this process, one after another, as with --debug."""


def _shard(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """The name of a shard, as it is. Raises click.BadParameter where it is none."""
    try:
        return text and "{}/{}".format(*shard_of(text))
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None


_OPTIONS = (
    click.option(
        "--jobs",
        metavar="N",
        type=click.IntRange(min=1),
        help="With many models: N at a time, each in a process of its own.  [default: one for each "
        "processor; fewer if models are run, which need memory, or if small files are read]",
    ),
    click.option(
        "--engine",
        type=click.Choice(["processes", "dask"]),
        default="processes",
        show_default=True,
        help="With many models: where to do the work.",
    ),
    click.option("--scheduler", metavar="ADDRESS", help="Of Dask: tcp://host:8786, for example."),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="With many models: do the I-th of N parts; 'bnfold merge' merges the reports.",
    ),
    click.option(
        "--resume",
        metavar="FILE",
        type=FILE,
        help="With many models: write a line to FILE for each one that is done, and skip models "
        "that FILE has and that did not change.",
    ),
    click.option(
        "--fail-fast", is_flag=True, help="With many models: stop at the first that fails."
    ),
    click.option("--full", is_flag=True, help="With many models: show each in full."),
    click.option("--quiet", "-q", is_flag=True, help="With many models: show no progress."),
)
_OUT_DIR = click.option(
    "--out-dir",
    metavar="DIR",
    type=FILE,
    help="With many models: write into DIR, in the same folders below it.",
)
_EXCLUDE = click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="In folders, skip what matches this shell pattern, by name or path. Repeatable.",
)
FLEET = frozenset(
    (
        *("jobs", "engine", "scheduler", "shard", "resume", "fail_fast", "full", "quiet"),
        *("out_dir", "exclude", "format_", "output", "write_baseline"),
    )
)
"""The options that are about the run as a whole, and not for a worker."""


def many(
    *, writes: bool, searches: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options for many models, of a command that `writes` something for each."""
    extra = ((_OUT_DIR,) if writes else ()) + ((_EXCLUDE,) if searches else ())
    return lambda command: having(command, *extra, *_OPTIONS)


@dataclass(frozen=True)
class _Parsed:
    """What the options of a task came to: their values, where those are from, and what they set."""

    options: Sequence[str]
    values: Mapping[str, Any]
    sources: Mapping[str, ParameterSource]
    meta: Mapping[str, Any]


class Command(shared.Command):
    """A command that can be done for many models: it keeps its command line for the workers.

    It has one argument, which takes all words but the options.
    """

    _parsed: _Parsed | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and remember what was parsed."""
        ctx.meta[WORDS] = tuple(args)
        if current() is None or args.count("--") != 1:  # it is no task, or where do models begin?
            return super().parse_args(ctx, args)
        return self._parse_task(ctx, args)

    def _parse_task(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a task of `tasks`: its options only where they are others than the last one's.

        Those of a run are the same, and thirty of them take a fifteenth of all that is done for a
        small model.
        """
        at = args.index("--")
        options, models = args[:at], tuple(args[at + 1 :])
        last = self._parsed
        if last is None or last.options != options:
            rest = super().parse_args(ctx, args)
            found = {name: ctx.get_parameter_source(name) for name in ctx.params}
            sources = {name: source for name, source in found.items() if source is not None}
            meta = {name: value for name, value in ctx.meta.items() if name != WORDS}
            self._parsed = _Parsed(options, dict(ctx.params), sources, meta)
            return rest
        ctx.params.update(last.values)
        for name, source in last.sources.items():
            ctx.set_parameter_source(name, source)
        ctx.meta.update(last.meta)
        (argument,) = (one for one in self.params if isinstance(one, click.Argument))
        ctx.params[str(argument.name)] = argument.process_value(ctx, models)
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options by what they are about: they are too many for one list."""
        about = {name: title for title, names in _SECTIONS.items() for name in names}
        listed: dict[str, list[tuple[str, str]]] = {"Options": [], **{one: [] for one in _SECTIONS}}
        options = (one for one in self.get_params(ctx) if isinstance(one, click.Option))
        for option in options:
            record = option.get_help_record(ctx)
            if record is not None:
                listed[about.get(option.name or "", "Options")].append(record)
        for title, records in listed.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def words(ctx: click.Context, without: Collection[str] = ()) -> list[str]:
    """The command and its options as they were given, but those of `FLEET` and the models.

    Those whose names are in `without` are left out, too: the command says them in another manner.
    """
    command = ctx.command
    given, _, _ = command.make_parser(ctx).parse_args(list(ctx.meta[WORDS]))
    found = [str(ctx.info_name)]
    for option in command.params:
        value = given.get(option.name or "")
        if not isinstance(option, click.Option) or option.name in FLEET or value is None:
            continue
        if option.name in without:
            continue
        if option.is_flag:
            found.append(option.opts[0])
        else:
            every = value if option.multiple else [value]
            found += [word for one in every for word in (option.opts[0], str(one))]
    return found


@dataclass(frozen=True)
class Run:
    """How many models are to be done, and how that is told.

    Attributes:
        options: those of `many`.
        format: that of the report.
        runs_models: whether each task runs models, which takes memory.
        kind: what the report calls its parts.
        pages: where each model has a page of its own, where they go; see `paged`.
    """

    options: Mapping[str, Any]
    format: str
    runs_models: bool
    kind: Kind = PROCESSED
    pages: Pages | None = None

    def results(self, tasks: Sequence[Task], reads: Sequence[Path] = ()) -> Results:
        """Do all tasks, and tell what is to be told meanwhile; a row for each, in their order.

        Results depend on what is in the files of the options, and in those that it `reads`.
        """
        from bnfold.cli.progress import Progress
        from bnfold.cli.resuming import Resuming

        link.begin()  # the limits that were given are those of each model
        garbage.search_rarely()
        rows: list[Row] = []
        with contextlib.ExitStack() as stack:
            stack.callback(_remove_empty, _missing(tasks))
            kept = stack.enter_context(Resuming(self.options["resume"]))
            is_quiet, is_live = self.options["quiet"], not self._streams
            progress = Progress(len(tasks), is_quiet=is_quiet, is_live=is_live)
            common = self._digest(reads) if self._keeps else ""
            done = stack.enter_context(
                contextlib.closing(self._rows(tasks, kept, progress, common))
            )
            stack.enter_context(progress)  # a bar has a thread, without which processes are started
            for row in done:
                rows.append(row if self.options.get("is_silent") else self.tell(row))
                if self.options["fail_fast"] and row.exit_code:
                    break
            kept.tell(len(tasks))
            if len(rows) == len(tasks):
                kept.put_in_order(rows, self.options["shard"])
                if not self.options.get("is_silent"):
                    self.tell_end(rows)
        if len(rows) < len(tasks):
            left = len(tasks) - len(rows)
            say(f"stopped at {rows[-1].path}: {left} of {len(tasks)} models were left out")
        return Results(self.kind, rows, len(tasks), self.options["shard"])

    @property
    def _keeps(self) -> bool:
        """Whether rows are written down, with the digests of what they are of."""
        return self.options["resume"] is not None or self.format == "jsonl"

    def tell_end(self, rows: Sequence[Row]) -> None:
        """Tell that all models of a shard were told of, where each was by itself."""
        if self.format == "jsonl" and self.options["output"] is None:
            for line in journal.ending(len(rows), self.options["shard"]):
                click.echo(line)

    def _digest(self, reads: Sequence[Path]) -> str:
        """That of what results depend on beside the model and its command line."""
        from bnfold.cli.conditions import conditions

        ctx = click.get_current_context()
        return digest(__version__, conditions(ctx, FLEET, reads, runs_models=self.runs_models))

    def is_asked_for(self) -> str:
        """An option that is for many models only, as it is written; "" where none is given."""
        names = ("jobs", "scheduler", "shard", "resume", "fail_fast", "full", "quiet", "exclude")
        given = next((name for name in names if self.options.get(name)), "")
        return f"--{given.replace('_', '-')}" if given else ""

    @property
    def is_for_eyes(self) -> bool:
        """Whether the report is only shown, and no program will look for it."""
        options = self.options
        return self.format == "text" and options["output"] is None and options["shard"] is None

    @property
    def _shows_failed(self) -> bool:
        """Whether standard output gets a text that says which models failed."""
        options = self.options
        return self.format == "text" and options["output"] is None and not options["full"]

    @property
    def _streams(self) -> bool:
        """Whether standard output gets something while models are done."""
        return self.options["full"] or self.format == "jsonl"

    def but(self, **options: Any) -> Run:
        """The same with other options; `is_silent` tells nothing of single models."""
        return replace(self, options={**self.options, **options})

    def tell(self, row: Row) -> Row:
        """Tell of one model, as soon as all before it are done; what is still to be told then."""
        for line in row.said:
            say(f"{row.path}: {line}" if row.path not in line else line)
        if self.pages is not None:
            return self.pages.add(row)
        if self.options["output"] is not None:
            return row
        if self.format == "jsonl":
            click.echo(journal.line(row))
        elif self.format == "text" and self.options["full"]:
            if row.is_done:
                click.echo(row.views["text"], color=True)
            return row.without_views()
        return row

    def _rows(
        self, tasks: Sequence[Task], kept: Resuming, progress: Progress, common: str
    ) -> Generator[Row]:
        """The rows in the order of the tasks, each as soon as those before it are there.

        Processes that do them are started now.
        """
        wanted = self._views()
        requests: list[Json] = []
        numbers: list[int] = []
        ready: dict[int, Row] = {}
        for number, task in enumerate(tasks):
            options = digest(common, *task.words)
            if task.error is not None:
                ready[number] = self._row(task, {"exit_code": 2, "error": task.error})
                continue
            before = kept.known(task.path, options)
            requests.append(
                {
                    "words": list(task.words),
                    "path": task.path,
                    "folder": os.getcwd(),
                    "target": task.target,
                    "products": list(task.products),
                    "others": list(task.others),
                    "views": {name: {**how, "number": number + 1} for name, how in wanted.items()},
                    "known": before and {"sha256": before.sha256, "files": dict(before.files)},
                    "options": options,
                    "keeps": self._keeps,
                }
            )
            numbers.append(number)
        done = self._engine(requests)

        def in_order() -> Generator[Row]:
            with contextlib.closing(done):
                for number in range(len(tasks)):
                    while number not in ready:
                        place, answer = next(done)
                        task, options = tasks[numbers[place]], requests[place]["options"]
                        answer.pop("is_spent", None)
                        is_unchanged = answer.pop("is_unchanged", False)
                        answer = kept.taken(task.path) if is_unchanged else answer
                        row = self._row(task, {**answer, "options": options})
                        ready[numbers[place]] = row
                        if not is_unchanged:
                            kept.add(row)
                        progress.add(row)
                    yield ready.pop(number)

        return in_order()

    def _row(self, task: Task, answer: Json) -> Row:
        """What came of a task."""
        if answer.get("report") is None and not answer.get("error"):
            answer |= {"exit_code": 2, "error": "nothing came of it"}
        elif answer.get("error"):
            answer |= {"report": None, "views": None}
        name, error = printable(task.path), answer.get("error")
        if error and not printable(error).startswith(name):  # what ends a process has no names
            answer |= {"error": f"{name}: {error}"}
        return Row(path=task.path, shard=self.options["shard"], number=task.number, **answer)

    @contextlib.contextmanager
    def paged(self, total: int) -> Iterator[Run]:
        """The same with a place for the pages of so many models, where each gets one."""
        from bnfold.cli import pages

        if self.format != "html" or (self.kind is INSPECTED and total <= pages.MOST_TOGETHER):
            yield self
            return
        with pages.place_for_pages(self.options["output"]) as place:
            yield replace(self, pages=place)

    def require(self, *needs: str) -> None:
        """See that libraries are there before each model is told to want them; see `each`.

        Of a cluster nobody knows here what it has. Raises VerificationImpossibleError.
        """
        from bnfold.running import requirements

        is_strict = bool(click.get_current_context().params.get("strict"))
        for one in needs if self.options["engine"] != "dask" else ():
            requirements.require(one, everything=is_strict)

    def refuse_contradictions(self) -> None:
        """Refuse options that do not go together. Raises click.UsageError."""
        options, is_dask = self.options, self.options["engine"] == "dask"
        if is_dask != (options["scheduler"] is not None):
            raise click.UsageError("--engine dask and --scheduler ADDRESS go together")
        if is_dask and options["jobs"] is not None:
            raise click.UsageError("--jobs is for this machine, which --engine dask is not for")
        if is_dask and click.get_current_context().meta.get("bnfold.debug"):
            raise click.UsageError("--debug works in one process, and --engine dask in others")
        if options["resume"] is not None and self.format == "html":
            raise click.UsageError("--resume keeps what is in JSON, and a page shows more")
        if options["resume"] is not None and options["full"]:
            raise click.UsageError("--resume keeps what is in JSON, and --full shows more")

    def each(
        self,
        ctx: click.Context,
        models: Sequence[Where],
        arguments: Callable[[Path], Sequence[str]],
        *,
        writes: bool,
        needs: Sequence[str] = (),
        more: Sequence[str] = (),
        without: Collection[str] = (),
        uncompared: Callable[[], Sequence[str]] = tuple,
    ) -> NoReturn:
        """Do the command for each of many models, report on all, and exit; see `tasks`.

        It `needs` libraries, by names in `requirements.COMMANDS`. `uncompared` tells, when all
        tasks are known, what else is there that none is about.
        """
        from bnfold.reports.text import many as text

        self.require(*needs)

        if self.options["output"] is not None:
            refuse_unwritable(self.options["output"], models)
        every = tasks(ctx, models, self, arguments, writes=writes, more=more, without=without)
        others = [*uncompared()]
        with self.paged(len(every)) as run:
            results = replace(run.results(every), uncompared=others)
            for row in () if self._shows_failed else results.failed:
                say(row.error or row.path)
            run.show(results, text.totals(results), lambda: parts_of(results.report))
        ctx.exit(results.exit_code)

    def show(
        self, results: Results, totals: str, rendered: Callable[[], str | Iterable[str]]
    ) -> None:
        """The report on many models: in a table, as pages, or as what is `rendered` of JSON."""
        from bnfold.reports.text import many as text

        output: Path | None = self.options["output"]
        if self.pages is not None:
            from bnfold.reports import html

            self.pages.publish(html.index(results.rows, totals, self.pages.folder))
        elif self.format == "text" and not self.options["full"]:
            print_text(lambda _: text.short(results, totals), output)
        elif self.format == "text" and output is None:
            click.echo(totals)
        elif self.format == "text":
            texts = (row.views["text"] if row.is_done else f"{row.error}\n" for row in results.rows)
            put((*(f"{one}\n" for one in texts), totals), output)
        elif self.format != "jsonl":
            put(rendered(), output)
        elif output is not None:  # to standard output they went already
            from bnfold.jobs.staging import write_text

            shard = None if results.left_out else results.shard
            write_text(output, journal.lines(results.rows, shard))
        if output is not None:
            say(f"{output}: written; {totals}")

    def _views(self) -> Json:
        """The forms of each report that are wanted beside JSON."""
        if self.format == "html":
            return {"html": {"is_alone": self.pages is not None}}
        if self.format == "text" and self.options["full"]:
            from bnfold.reports import terminal

            if self.options["output"] is None:
                console = terminal.console()
                return {"text": {"width": console.width, "colors": console.color_system}}
            return {"text": {"width": terminal.PIPE_WIDTH, "colors": None}}
        return {}

    def _engine(self, requests: Sequence[Json]) -> Generator[tuple[int, Json]]:
        if self.options["engine"] == "dask":
            from bnfold.fleet import cluster

            return cluster.on_cluster(requests, self.options["scheduler"])
        if IN_PROCESS or click.get_current_context().meta.get("bnfold.debug"):
            return _here(requests)
        from bnfold.fleet import pool

        jobs = self.options["jobs"] or pool.default_jobs(
            [_size(request["path"]) for request in requests], runs_models=self.runs_models
        )
        return pool.in_processes(requests, jobs, runs_models=self.runs_models)


def _size(path: str) -> int | None:
    return None if is_url(path) else limits.size(Path(path))


def _missing(tasks: Sequence[Task]) -> list[Path]:
    """The folders that are not there yet for what is written, the inner ones first."""
    targets = {Path(task.target) for task in tasks if task.target is not None}
    every = {folder for target in targets for folder in (target, *target.parents)}
    missing = [folder for folder in every if not os.path.lexists(folder)]
    return sorted(missing, key=lambda folder: len(folder.parts), reverse=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that nothing was written to, when nobody writes any more."""
    for folder in folders:
        with contextlib.suppress(OSError):  # something is in it, or it was never made
            folder.rmdir()


def _here(requests: Sequence[Json]) -> Generator[tuple[int, Json]]:
    from bnfold.cli import worker

    for number, request in enumerate(requests):
        link.begin()
        yield number, worker.perform(request)


def tasks(
    ctx: click.Context,
    models: Sequence[Where],
    run: Run,
    arguments: Callable[[Path], Sequence[str]] = lambda _: (),
    *,
    exclude: Sequence[str] = (),
    writes: bool = False,
    more: Sequence[str] = (),
    without: Collection[str] = (),
) -> list[Task]:
    """A task for each model that is named or found.

    `arguments` says what follows the model on its command line, from its place below what was
    named; with `writes` these are paths that are written. `more` are options for all, in the
    place of those `without` which the command line is handed on.

    Raises:
        click.UsageError: two models would be written to one place, or options contradict.
    """
    run.refuse_contradictions()
    shard = run.options["shard"]
    _refuse_unwritable(run, ctx, models)
    out = run.options.get("out_dir")
    found, failed = places(models, (*run.options.get("exclude", ()), *exclude))
    command = (*words(ctx, without), *more, "--")
    every: list[Task] = []
    taken: dict[str, Where] = {}
    for place in found:
        if out is not None and is_product(place, out):
            continue
        path = str(place.path)
        try:
            if writes and isinstance(place.path, Remote):
                check_place(place)
            following = tuple(arguments(place.below))
        except BnfoldError as error:
            every.append(Task(path, error=str(error)))
            continue
        named = place.path.url if isinstance(place.path, Remote) else path
        line = (*command, named, *following)
        if not writes:
            every.append(Task(path, line, others=following))
            continue
        for target in following:
            if (other := taken.setdefault(target, place.path)) != place.path:
                raise click.UsageError(
                    f"{other} and {path} would both become {target}; --exclude leaves one out"
                )
        every.append(Task(path, line, str(Path(following[0]).parent), following))
    _refuse_nested(taken)
    every += [Task(one.path, error=one.error) for one in failed]
    if shard is None:
        return every
    numbered = [replace(one, number=number) for number, one in enumerate(every, start=1)]
    return [one for one in numbered if is_in_shard(one.path, *shard_of(shard))]


def _refuse_nested(targets: Mapping[str, Where]) -> None:
    """Refuse what would be written into a folder that is written as well."""
    for target, path in targets.items():
        for folder in map(str, Path(target).parents):
            if folder in targets:
                raise click.UsageError(
                    f"{path} would become {target}, inside of what {targets[folder]} would become"
                )


def _refuse_unwritable(run: Run, ctx: click.Context, models: Sequence[Where]) -> None:
    """Refuse a file of --resume that is another one too, before anything is done."""
    resume: Path | None = run.options["resume"]
    if resume is not None:
        others = [value for name, value in ctx.params.items() if name not in ("resume", "out_dir")]
        files = [one for one in others if isinstance(one, Path)]
        refuse_unwritable(resume, (*models, *files), "--resume")


def taken(
    given: Mapping[str, Any], format_: str | None, output: Path | None, *, runs_models: bool
) -> tuple[Run, dict[str, Any]]:
    """The options of `many` among those that are given to a command, and the others."""
    options = {name: value for name, value in given.items() if name in FLEET}
    others = {name: value for name, value in given.items() if name not in FLEET}
    wanted = format_ or ending_says(output, BY_ENDING)
    return Run({**options, "output": output}, wanted, runs_models), others


def pair(paths: Sequence[str], run: Run, folder: str = "--out-dir") -> tuple[Where, str]:
    """MODEL and what follows it, of a command that is for one model here.

    Raises:
        click.UsageError: it is for many, which are written to `folder`, or there is nothing more.
    """
    limit()
    if given := run.is_asked_for():
        raise click.UsageError(f"{given} is for many models, and goes with {folder}")
    if len(paths) == 1:
        raise click.UsageError("where is the result to go? after MODEL, or with --out-dir")
    if len(paths) > 2:
        raise click.UsageError("many models need --out-dir DIR, which they are written to")
    (source,) = sources(paths[:1])
    if isinstance(source, Path) and is_many([source]):
        found, _ = places([source], ())
        if any(one.path != source for one in found):
            raise click.UsageError(f"{source} is not one model; those in it need --out-dir DIR")
    return source, paths[1]
