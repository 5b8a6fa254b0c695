"""The command group: what all commands have in common, and what becomes of their errors."""

import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from bnfold.cli import garbage
from bnfold.cli.options import CONTEXT, RUNNING_CODE, debug
from bnfold.cli.output import say
from bnfold.cli.recorder import current
from bnfold.errors import BnfoldError
from bnfold.running import process
from bnfold.supervision import link
from bnfold.supervision.watch import ASKING
from bnfold.version import __version__

_SOON = 0.1  # seconds


COMMANDS = {
    "inspect": (
        "inspect",
        "Show every BatchNormalization: where it is, its settings, statistics, whether it folds.",
    ),
    "rule": (
        "rules",
        "Explain one rule, by its code or its name: what it finds, why it matters, what to do.",
    ),
    "rules": (
        "rules",
        "List the rules by which inspect judges: code, name, levels, and what each finds.",
    ),
    "recalibrate": (
        "recalibrate",
        "Estimate the moving statistics of MODEL again from data, and write it to OUT.",
    ),
    "fold": (
        "fold",
        "Fold the BatchNormalization layers of MODEL into OUT, and verify that it computes the "
        "same.",
    ),
    "verify": (
        "verify",
        "Verify that OTHER computes the same as MODEL, whatever made it.",
    ),
    "export": (
        "fold",
        "Fold the BatchNormalization layers of MODEL and write it for the runtimes that deploy it.",
    ),
    "prepare": (
        "prepare",
        "Make everything that you deploy of MODEL, in a new folder DIR.",
    ),
    "bench": (
        "bench",
        "Measure how long the models A and B take for the same inputs, side by side.",
    ),
    "merge": (
        "merge",
        "Merge reports on different models into one, the same that one run would have made.",
    ),
    "doctor": (
        "doctor",
        "Say which libraries are installed, and what each command can do with them.",
    ),
}
"""The module of each command, and the first sentence of its help, in the order of their use."""


class _Imported(MutableMapping[str, click.Command]):
    """The commands by their names, each imported when it is asked for."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._found:
            module, _ = COMMANDS[name]
            self._found[name] = getattr(import_module(f"bnfold.cli.{module}"), name)
        return self._found[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Commands(click.Group):
    """Turns every error into one line and an exit code, unless --debug asks for the traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of their use."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their first sentences, which click would cut to one line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        """Read what stands before the command, such as --version, and answer for errors in it."""
        try:
            return super().make_context(*given, **more)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            click.echo(f"bnfold: {_usage(error)}", err=True)
        except OSError as error:
            click.echo(f"bnfold: {_os_error(error)}", err=True)
        sys.exit(2)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and answer for what it raises."""
        try:
            with _interrupts():
                return super().invoke(ctx)
        except click.UsageError as error:
            _propose_no_code(error)
            _fail(ctx, _usage(error))
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (click.Abort, KeyboardInterrupt) as end:
            _interrupted(ctx, end)
        except BnfoldError as error:
            _fail(ctx, str(error))
        except BrokenPipeError:
            sys.stderr.close()  # keeps Python from complaining about the closed pipe at exit
            ctx.exit(0)
        except OSError as error:
            _fail(ctx, _os_error(error))
        except SystemExit as end:
            _refuse_to_end(ctx, end)
        except MemoryError:
            _fail(ctx, link.out_of_memory())
        except RecursionError:
            _fail(ctx, link.said("is nested too deeply"))
        except ImportError as error:
            text = _text(error)
            _fail(ctx, f"cannot import what it needs: {text} ('bnfold doctor' shows what is there)")
        except Exception as error:
            text = _text(error)
            if text == "can't start new thread":
                _fail(ctx, link.said(text))
            _fail(ctx, f"internal error: {type(error).__name__}: {text} (--debug shows where)")


def _text(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:300]


def _os_error(error: OSError) -> str:
    is_lost = isinstance(error, FileNotFoundError)  # only the current directory has no name there
    what = error.filename or ("the current directory" if is_lost else "output")
    return f"{what}: {error.strerror or error}"


def _usage(error: click.UsageError) -> str:
    help_with = f" ('{error.ctx.command_path} --help' helps)" if error.ctx else ""
    return f"{error.format_message()}{help_with}"


def _interrupted(ctx: click.Context, end: BaseException) -> NoReturn:
    if link.is_supervised() and not isinstance(end, (process.Interrupted, click.Abort)):
        _fail(ctx, link.said("was ended by code that it needs, with KeyboardInterrupt,"))
    click.echo("bnfold: interrupted", err=True)
    ctx.exit(130)


def _refuse_to_end(ctx: click.Context, end: SystemExit) -> NoReturn:
    """End as a signal asks. A module of the user's may end too, and then nothing is proved."""
    if isinstance(end, process.Stopped):
        raise end
    _fail(ctx, link.said("was ended by code that it needs, with SystemExit,"))


def _propose_no_code(error: click.UsageError) -> None:
    """Have click propose no option that lets code run, whatever it is like."""
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        harmless = [name for name in error.possibilities if name not in RUNNING_CODE]
        error.__dict__["possibilities"] = harmless  # which click declares as final


def _fail(ctx: click.Context, message: str) -> NoReturn:
    if ctx.meta.get("bnfold.debug"):
        raise  # noqa: PLE0704 - called while the error is being handled
    if (recorder := current()) is not None:
        recorder.error = message
    else:
        say(message)
    ctx.exit(2)


@click.group(cls=Commands, commands=_Imported(), context_settings=CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="bnfold")
@debug
def main() -> None:
    """Audit Keras models, fold their BatchNormalization layers, verify the result.

    MODEL is what model.save() writes: a .keras file, a directory (zipped=False) or a legacy .h5
    file, or the URL of one (s3://, gs://, az://, hf://, https://). It is read as data: nothing in
    it is executed. Verification loads it in Keras' safe mode.

    \b
    Exit codes: 0 success, 1 a negative answer, 2 wrong usage or unreadable input.
    """


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """End by an exception, so that what was being written is cleaned up; nothing disturbs that."""
    signal.signal(number, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise process.Interrupted
    raise process.Stopped(128 + number)


def _stop_all_the_same(lost: "sys.UnraisableHookArgs") -> None:
    """Have a signal come once more that came in a finalizer, where Python drops what it raises."""
    if isinstance(lost.exc_value, (KeyboardInterrupt, SystemExit)):
        interrupted = isinstance(lost.exc_value, KeyboardInterrupt)
        number = signal.SIGINT if interrupted else signal.SIGTERM
        signal.signal(number, _stop)
        threading.Timer(_SOON, os.kill, [os.getpid(), number]).start()
    elif not link.is_supervised():  # what finalizers of libraries complain of is for debuggers
        sys.__unraisablehook__(lost)


def _say_nothing(*_: object) -> None:
    """Let no finalizer print a traceback.

    Those of Cython's classes do so before they ask the hook for it, as h5py's where a signal, or a
    lack of memory, came while one of its objects was made. What ends this process is not told
    here: the supervisor does that.
    """


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Make an exception of Ctrl-C where it would end this process at once.

    So it does in a process that is supervised, as long as there is nothing to clean up.
    """
    is_deadly = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if is_deadly:
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        if is_deadly and signal.getsignal(signal.SIGINT) is _stop:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _say_warnings() -> None:
    """Say what we warn of as we say everything else, and without a place in the code."""
    by_python = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        from bnfold.model.container.remote import PlainHttpWarning
        from bnfold.running.advisories import VulnerableVersionWarning

        if issubclass(category, (VulnerableVersionWarning, PlainHttpWarning)):
            say(f"warning: {message}")
        else:
            by_python(message, category, *place, **more)

    vars(warnings)["showwarning"] = show  # the documented way to have them shown differently


def enter() -> None:
    """Have this process be bnfold's own, which runs commands."""
    process.take_over()
    _say_warnings()
    if os.name == "posix":
        sys.unraisablehook = _stop_all_the_same
    if link.is_supervised():
        sys.excepthook = _say_nothing
    garbage.search_rarely()
    for number in ASKING:
        if number != signal.SIGINT and signal.getsignal(number) is not signal.SIG_IGN:  # by nohup
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run() -> None:
    """Run the command of `sys.argv` in this process, which is bnfold's own."""
    enter()
    garbage.search_later()
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if link.finished(code) and code in (0, 1):
            _leave(code)
        raise


def _leave(code: int) -> None:
    """End at once where everything is written, or Python puts away one object after the other.

    Not where models were run, whose libraries have threads; nor after an error, whose traceback may
    hold on to what HDF5 reads from, which crashes if it dies before its file.
    """
    gc.freeze()
    if not link.has_run_models() and threading.active_count() == 1:
        atexit._run_exitfuncs()
        os._exit(code)
