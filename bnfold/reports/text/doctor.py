"""What is installed, for people; in plain text, since rich may be what is missing."""

from collections.abc import Iterator

from bnfold.jobs.doctor import CommandState, Diagnosis, LibraryState
from bnfold.supervision.limits import MIB


def diagnosis(found: Diagnosis) -> str:
    """The platform, the libraries, and what each command can do."""
    return "\n".join(_lines(found))


def _lines(found: Diagnosis) -> Iterator[str]:
    yield f"bnfold {found.bnfold}, Python {found.python} ({found.implementation})"
    yield f"{found.platform}, {found.processors} processors, {_memory(found.memory)} of memory"
    yield f"models run with Keras on {found.backend}, in a separate process ({found.process}),"
    seconds, memory = found.limits["running_seconds"] or 0, found.limits["running_memory"]
    yield f"which is limited to {seconds:.0f} s and {_memory(memory)} (--timeout and --memory)"
    yield ""
    yield "libraries:" if found.imported else "libraries, which were not imported:"
    width = max(len(one.module) for one in found.libraries)
    yield from (f"  {one.module:{width}}  {_library(one)}" for one in found.libraries)
    yield ""
    yield "commands:"
    width = max(len(one.name) for one in found.commands)
    yield from (f"  {one.name:{width}}  {_command(one)}" for one in found.commands)


def _memory(size: float | None) -> str:
    return "an unknown amount" if size is None else f"{size / MIB:.0f} MiB"


def _library(one: LibraryState) -> str:
    said = one.version or ("of an unknown version" if one.problem is None else "")
    if one.distribution not in (None, one.module.replace("_", "-")):
        said += f" ({one.distribution})"
    if one.problem is not None:
        said += f" {one.problem}"
    if one.problem is not None and one.extra is not None:
        said += f" (bnfold[{one.extra}]{f', for {one.use}' if one.use else ''})"
    elif one.use:
        said += f", for {one.use}"
    if one.advisories:
        said += f"; has {', '.join(one.advisories)}, which {one.fixed_in} does not have"
    return said.strip()


def _command(one: CommandState) -> str:
    if one.problem is not None:
        return f"no: {one.problem}"
    return f"yes, but {one.limitation}" if one.limitation else "yes"
