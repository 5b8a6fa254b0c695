"""The options that several commands share, and how a command says what it is doing."""

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli import garbage, recorder
from bnfold.supervision import limits, link

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from bnfold.jobs.settings import Settings
    from bnfold.jobs.verify import Proof
    from bnfold.model.container.remote import Where
    from bnfold.observation.observe import DataRun

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Here(click.Path):
    """A file or folder of this machine."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Its path; a URL would become that of a folder which is called like it."""
        from bnfold.model.container.remote import is_url

        if is_url(os.fsdecode(value)):
            self.fail("is a URL; only models can be in a store", param, ctx)
        return super().convert(value, param, ctx)


FILE = _Here(path_type=Path)
"""Of a file that may not be there yet, such as a report."""
SAMPLES = _Here(exists=True, dir_okay=False, path_type=Path)


class Source(click.ParamType):  # type: ignore[type-arg]
    """A model, or a folder of models: a path, or a URL."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What it names, or a usage error."""
        from bnfold.errors import UnreadableModelError
        from bnfold.model.container.remote import located

        try:
            return located(value)
        except UnreadableModelError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Files and folders, which the shell finds."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


SOURCE = Source()


def sources(paths: Sequence[str]) -> "list[Where]":
    """What these paths and URLs name; see `Source`."""
    return [SOURCE.convert(one, None, click.get_current_context()) for one in paths]


NAME = click.Path()
"""Of a path that keeps a slash at its end."""


def having(command: Callable[..., Any], *options: Callable[..., Any]) -> Callable[..., Any]:
    """A command with these options, which its help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command


class Command(click.Command):
    """A command that reads models: what all of them need is imported before it begins.

    Its help needs none of that.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        import_libraries()
        return super().invoke(ctx)


def import_libraries() -> None:
    """Import numpy, whatever it says of what is amiss.

    Raises:
        BnfoldError: it cannot be imported.
    """
    if "bnfold.model.container.guard" in sys.modules:
        return
    with contextlib.ExitStack() as stack:
        if link.is_supervised():  # the supervisor says how it ended, if it does
            stack.enter_context(_silence())
        from bnfold.model.container.library import imported

        imported("bnfold.model.container.guard")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let nothing get to standard error, from C libraries neither."""
    if sys.stderr is not None:  # it may be closed
        sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Finite(click.FloatRange):
    """A number in a range, and neither NaN, which is in every range, nor infinity."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, or a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["bnfold.debug"] = True


def debug(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for the traceback of an error."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_debug,
        help="Show the traceback of an error; work in one process, without limits.",
    )(command)


class Size(click.ParamType):  # type: ignore[type-arg]
    """An amount of memory: 512M, 8G, or a number of MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes, or a usage error."""
        found = value if isinstance(value, int) else limits.memory_of(value)
        if found is None:
            self.fail(f"{value!r} is not an amount of memory, such as 512M or 8G.", param, ctx)
        return found


_GIVEN = "bnfold.limits"


def _limit(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is None:
        return
    if ctx.meta.get("bnfold.debug"):
        raise click.BadParameter("no limit holds with --debug.", ctx, param)
    ctx.meta.setdefault(_GIVEN, {})["seconds" if param.name == "timeout" else "memory"] = value


def limit() -> None:
    """Have the limits that were given hold from now on, for all that this process does."""
    link.allow(**click.get_current_context().meta.get(_GIVEN, {}))


_LIMITS = (
    click.option(
        "--timeout",
        type=Finite(min=0, min_open=True),
        metavar="SECONDS",
        expose_value=False,
        callback=_limit,
        help="Stop if the command takes longer, or one of many models does.  [default: "
        f"{limits.READING_SECONDS:g} for reading a file, with {limits.READING_SECONDS_PER_MIB:g} "
        f"more for each MiB and {limits.SECONDS_PER_LAYER:g} for each layer; "
        f"{limits.RUNNING_SECONDS:g} for running models]",
    ),
    click.option(
        "--memory",
        type=Size(),
        metavar="SIZE",
        expose_value=False,
        callback=_limit,
        help="Stop if the command takes more memory, such as 512M or 8G; a number alone is in "
        "MiB.  [default: "
        f"{limits.READING_MEMORY // limits.MIB}M for reading a file, or "
        f"{limits.READING_MEMORY_PER_BYTE} times its size if that is more, with "
        f"{limits.MEMORY_PER_LAYER // 1024} KiB for each layer; {limits.RUNNING_SHARE:.0%} of the "
        "machine's for running models]",
    ),
)


def limitable(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that opens models: what it may take, see `limit`, and `debug`."""
    return debug(having(command, *_LIMITS))


def limited(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same, of a command for which they hold from its start."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        limit()
        return command(*args, **given)

    return limitable(run)


def _digests(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    if not values:
        return ()
    from bnfold.errors import SettingsError
    from bnfold.model.container.unchanging import digests

    try:
        return digests(values)
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None


def pinned(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for which files are meant."""
    return click.option(
        "--sha256",
        metavar="HEX",
        multiple=True,
        callback=_digests,
        help="Read a model only if this is its SHA-256. Repeatable: each model must have one of "
        "these.",
    )(command)


def report_format(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for how to report."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How to report.",
    )(command)


_DATA = click.option(
    "--data",
    type=SAMPLES,
    metavar="FILE",
    help="Samples to run instead of random ones: an .npz with one array for each input, or "
    "an .npy; the first axis is the sample.",
)
_LOADING = (
    click.option(
        "--trust",
        is_flag=True,
        help="Allow the model to run code of its own, such as Lambda layers.",
    ),
    click.option(
        "--import",
        "imports",
        metavar="MODULE",
        multiple=True,
        help="Import this Python module first, for its custom layers. Repeatable.",
    ),
)
RUNNING_CODE = frozenset({"--trust", "--import"})
"""The options that let code run; none of them is ever proposed to somebody who mistyped another."""

_EXECUTION = (
    click.option(
        "--seed",
        metavar="N",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of the random samples.",
    ),
    *_LOADING,
)

_TOLERANCES = (
    click.option(
        "--rtol",
        metavar="X",
        type=Finite(min=0),
        help="Allow an error of X times each channel's magnitude, instead of the measured "
        "tolerance.",
    ),
    click.option(
        "--atol",
        metavar="Y",
        type=Finite(min=0),
        help="Allow an error of Y, beside --rtol, instead of the measured tolerance.",
    ),
)
_STRICT = click.option(
    "--strict",
    is_flag=True,
    help="Refuse unless both Keras and ONNX Runtime judged, and the samples exercised every output "
    "and every place where a layer was folded.",
)


def execution(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that runs models."""
    return having(command, *_EXECUTION)


def comparison(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that compares what models compute."""
    return _DATA(execution(having(command, *_TOLERANCES)))


_BOUNDS = (
    click.option(
        "--min-sqnr",
        metavar="DB",
        type=Finite(min=0),
        help="Refuse if an output's signal-to-quantization-noise ratio is lower, in any runtime.",
    ),
    click.option(
        "--max-changed",
        metavar="N|P%",
        help="Refuse if more decisions of a classifier change than N, or than this share of them.",
    ),
)


def bounded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for what is asked of the figures of a verification."""
    return having(command, *_BOUNDS)


def proving(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that proves."""
    return comparison(_STRICT(command))


def over_data(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of everything that runs a model over the user's data; see `data_run`."""
    data = click.option(
        "--data",
        type=SAMPLES,
        metavar="FILE",
        required=required,
        help="Samples to run the model over: an .npz with one array for each input, or an .npy; "
        "the first axis is the sample.",
    )
    batch = click.option(
        "--batch",
        metavar="N",
        type=click.IntRange(min=1),
        help="Samples in memory at a time.  [default: what is safe, up to 128]",
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        return having(command, data, batch, *_LOADING)

    return decorate


def data_run(
    data: Path | None, batch: int | None, trust: bool, imports: Sequence[str]
) -> "DataRun | None":
    """What the options of `over_data` say; None without data."""
    given = {"--batch": batch, "--trust": trust, "--import": imports}
    wanted = [name for name, value in given.items() if value]
    if data is None and wanted:
        raise click.UsageError(f"{wanted[0]} goes with --data")
    if data is None:
        return None
    return running_over(data, batch, trust, imports)


def running_over(data: Path, batch: int | None, trust: bool, imports: Sequence[str]) -> "DataRun":
    """What the options of `over_data` say, with data."""
    from bnfold.observation.observe import DataRun
    from bnfold.running.options import Loading

    return DataRun(data, batch, Loading(trust, imports), progress)


def proof(
    *,
    data: Path | None,
    seed: int,
    trust: bool,
    imports: Sequence[str],
    rtol: float | None,
    atol: float | None,
    strict: bool = False,
    min_sqnr: float | None = None,
    max_changed: str | None = None,
) -> "Proof":
    """What the options of `comparison`, `proving` and `bounded` say."""
    from bnfold.errors import SettingsError
    from bnfold.jobs.verify import Proof
    from bnfold.running.options import Bounds, Loading, Samples, Tolerance

    try:
        bounds = Bounds(min_sqnr, max_changed)
    except SettingsError as error:
        raise click.UsageError(f"--max-changed: {error}") from None
    where = Samples(data, seed)
    return Proof(Loading(trust, imports), where, Tolerance(rtol, atol), strict, bounds)


FAIL_ON = ("error", "warning", "info", "never")
SETTINGS_FILE = (
    click.option(
        "--config",
        metavar="FILE",
        type=FILE,
        help="Take the settings from [tool.bnfold] of this TOML file.  "
        "[default: the nearest pyproject.toml that has it]",
    ),
    click.option("--no-config", is_flag=True, help="Take no settings from any file."),
)
"""Where the settings of the rules come from."""


def gating(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that look at a model before they make something of it."""
    fail_on = click.option(
        "--fail-on",
        type=click.Choice(FAIL_ON),
        default="never",
        show_default=True,
        help="Write nothing, and exit with 1, if 'bnfold inspect' has a finding on MODEL this bad "
        "or worse. Errors are reported in any case.",
    )
    return having(command, fail_on, *SETTINGS_FILE)


def settings_file(config: Path | None, *, no_config: bool) -> "Settings":
    """The settings of the rules: from the file that is named, or found, or the defaults."""
    from bnfold.jobs import settings

    if config is not None and no_config:
        raise click.UsageError("--config contradicts --no-config")
    path = settings.find(Path.cwd()) if config is None and not no_config else config
    return settings.Settings() if path is None else settings.read(path)


def gate_settings(fail_on: str, config: Path | None, *, no_config: bool) -> "Settings":
    """What the options of `gating` say; `fail-on` of the file is for `inspect`."""
    from bnfold.jobs.settings import severity

    return replace(settings_file(config, no_config=no_config), fail_on=severity(fail_on))


def keep_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for layers to leave alone."""
    return click.option(
        "--keep",
        metavar="PATTERN",
        multiple=True,
        help="Leave layers alone whose name or nested path matches this shell pattern. Repeatable.",
    )(command)


def _keras(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if not value:
        return value
    from bnfold.errors import SettingsError
    from bnfold.model.training import training_rules

    try:
        if value is not None:
            training_rules(value)
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None
    return value


def keras_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option for the version of Keras that a model is for."""
    return click.option(
        "--keras",
        metavar="VERSION",
        callback=_keras,
        help="The Keras that will run the model, such as 2.15, 3.15 or 3.16, or 'any': versions "
        "differ in which layers run in training mode.  [default: the installed one, else any]",
    )(command)


inference_option = click.option(
    "--inference",
    is_flag=True,
    help="The result is called for inference only: augmentation and resizing layers, which take "
    "training=True by default, get training=False in OUT and keep nothing from folding.",
)


def progress(stage: str) -> None:
    """Say on standard error what is being done."""
    garbage.settle()
    if recorder.current() is None:
        click.echo(f"bnfold: {stage} ...", err=True)
