"""What is installed, and what each command can do with it: for whom something does not work."""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bnfold.errors import ProcessStoppedError
from bnfold.jobs import child
from bnfold.running import advisories, libraries, process, requirements
from bnfold.running.requirements import Installed, Needs
from bnfold.serialize import Report, Serializable
from bnfold.supervision import limits, link, platforms
from bnfold.version import __version__


@dataclass(frozen=True)
class LibraryState(Serializable):
    """A library.

    Attributes:
        module: its name in Python.
        distribution: the package that has it; None where that is not known.
        version: of the module if it was imported, else of the package; None if unknown.
        lowest: the lowest version that bnfold works with.
        extra: the extra of bnfold that installs it; None for what is always installed.
        use: what it is for; None where every command, or all that runs models, needs it.
        problem: what is wrong with it, in a few words; None if nothing is.
        advisories: the published vulnerabilities of this version.
        fixed_in: a version without them; None if there are none.
    """

    module: str
    distribution: str | None
    version: str | None
    lowest: str
    extra: str | None
    use: str | None
    problem: str | None
    advisories: tuple[str, ...] = ()
    fixed_in: str | None = None


@dataclass(frozen=True)
class CommandState(Serializable):
    """A command.

    Attributes:
        name: with the option that makes a difference, such as `fold --no-verify`.
        problem: why it cannot run, and what to install; None if it can.
        limitation: what it does without, and what to install; None if nothing.
    """

    name: str
    problem: str | None
    limitation: str | None

    json_keys: ClassVar[tuple[str, ...]] = ("name", "works", "problem", "limitation")

    @property
    def works(self) -> bool:
        """Whether it can run."""
        return self.problem is None


@dataclass(frozen=True)
class Diagnosis(Report):
    """What is installed, and what each command can do with it.

    Attributes:
        bnfold, python: their versions.
        implementation: of Python, such as CPython.
        platform: the operating system, its version, the processor's architecture.
        processors: how many there are.
        memory: bytes that this process can have; None where the system does not say it.
        process: how the process that does the work is started: "fork" or "spawn".
        backend: the one of Keras on which models run.
        limits: what commands may take without --timeout and --memory, in seconds and bytes.
        imported: whether the libraries were imported, to see whether they work.
        libraries: those that bnfold imports.
        commands: those that need something.
    """

    bnfold: str
    python: str
    implementation: str
    platform: str
    processors: int
    memory: int | None
    process: str
    backend: str
    limits: Mapping[str, float | None]
    imported: bool
    libraries: tuple[LibraryState, ...]
    commands: tuple[CommandState, ...]

    def __bool__(self) -> bool:
        """Whether all commands work that run no model."""
        light = (name for name, one in requirements.COMMANDS.items() if one.is_light)
        works = {one.name: one.works for one in self.commands}
        return all(works[name] for name in light)


def diagnose(*, imports: bool, seconds: float, progress: Callable[[str], None]) -> Diagnosis:
    """Look at what is installed.

    With `imports` every library is imported in another process, which may take so many seconds and
    may crash: that is told of the library that it was importing.
    """
    found = {module: requirements.look(module) for module in requirements.LIBRARIES}
    if imports:
        there = [module for module, one in found.items() if one.is_there]
        progress(f"importing {', '.join(there)}")
        found |= {one.library.module: one for one in _tried([found[m] for m in there], seconds)}
    return Diagnosis(
        bnfold=__version__,
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        platform=platform.platform(),
        processors=os.cpu_count() or 1,
        memory=platforms.memory(),
        process="fork" if hasattr(os, "fork") else "spawn",
        backend=process.BACKEND,
        limits={
            "reading_seconds": limits.READING_SECONDS,
            "reading_seconds_per_mib": limits.READING_SECONDS_PER_MIB,
            "reading_memory": limits.READING_MEMORY,
            "running_seconds": limits.RUNNING_SECONDS,
            "running_memory": limits.running_memory(),
        },
        imported=imports,
        libraries=tuple(map(_library, found.values())),
        commands=tuple(_command(*one, found) for one in requirements.COMMANDS.items()),
    )


def _library(found: Installed) -> LibraryState:
    library = found.library
    names, better = advisories.known(library.module, found.version or "")
    return LibraryState(
        module=library.module,
        distribution=found.distribution,
        version=found.version,
        lowest=library.lowest,
        extra=library.extra or None,
        use=library.use or None,
        problem=found.problem,
        advisories=names,
        fixed_in=better or None,
    )


def _command(name: str, needs: Needs, found: Mapping[str, Installed]) -> CommandState:
    needed, used = ([found[module] for module in one] for one in (needs.needed, needs.used))
    problem, limitation = requirements.lacking(needed), requirements.lacking(used)
    if problem is not None and needs.instead:
        problem += f", or {needs.instead}"
    return CommandState(name, problem, limitation if problem is None else None)


# --- imports -------------------------------------------------------------------------------------


def _tried(there: Sequence[Installed], seconds: float) -> Iterator[Installed]:
    """The libraries with the version that they say themselves, or why they cannot be imported."""
    left = list(there)
    while left:
        told, error = _until_it_stops([one.library.module for one in left], seconds)
        for one, (version, problem) in zip(left, told, strict=False):
            yield replace(one, version=version or one.version, error=problem)
        left = left[len(told) :]
        if left:  # it was importing the first of them; the others may still be fine
            yield replace(left.pop(0), error=error)


_Told = tuple[str | None, str | None]


def _until_it_stops(modules: Sequence[str], seconds: float) -> tuple[list[_Told], str]:
    """What `import_all` tells in a child process, and what stopped that before the end, if it."""
    told: list[_Told] = []
    try:
        child.run_apart(import_all, modules, seconds, lambda *one: told.append(one))
    except ProcessStoppedError as error:
        return told, str(error)
    return told, ""


def import_all(
    modules: Sequence[str], seconds: float, tell: Callable[[str | None, str | None], Any]
) -> None:
    """Import libraries; `tell` is called for each, with its version or with what is wrong.

    This runs in a process of its own, which may take so many seconds.
    """
    link.allow(seconds)
    process.keep_to_itself()
    for module in modules:
        link.stage(f"importing {module}")
        try:
            libraries.imported(requirements.LIBRARIES[module].part or module)
        except Exception as error:
            tell(None, libraries.one_line(error))
        else:
            version = getattr(sys.modules[module], "__version__", None)
            tell(None if version is None else str(version), None)
