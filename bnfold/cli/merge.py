"""`bnfold merge`."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click

from bnfold.cli.options import CONTEXT, FILE, Command, debug
from bnfold.cli.output import put, refuse_unwritable, say
from bnfold.errors import BnfoldError, SettingsError
from bnfold.model.container.printing import printable

_MOST_BYTES = 1 << 30


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("reports", metavar="REPORT...", nargs=-1, required=True, type=FILE)
@click.option(
    "--output",
    metavar="FILE",
    type=FILE,
    help="Write to this file, and replace an earlier one.",
)
@debug
def merge(reports: Sequence[Path], output: Path | None) -> None:
    """Merge reports on different models into one, the same that one run would have made.

    REPORTs are of one kind: JSON, JSON Lines (.jsonl), SARIF or baselines. Those of --shard name
    their shard, and a missing one is an error. Baselines name none, and keep the paths of models,
    which are from the folder that they were written to.

    \b
    Examples:
      bnfold inspect models --shard 1/2 --output 1.json
      bnfold inspect models --shard 2/2 --output 2.json
      bnfold merge 1.json 2.json --output all.json

    \b
    Exit codes: 0 success, 2 wrong usage or something that cannot be merged.
    """
    from bnfold.audit import baseline
    from bnfold.fleet import journal, merging
    from bnfold.fleet.results import how_many
    from bnfold.serialize import parts_of

    if output is not None:
        refuse_unwritable(output, reports)
    if all(path.suffix.lower() == ".jsonl" for path in reports):
        names = {path: printable(str(path)) for path in reports}
        journals = {name: journal.read(path, name, must_exist=True) for path, name in names.items()}
        rows = merging.rows(journals)
        text: str | Iterable[str] = "\n".join(map(journal.line, rows))
        said = how_many(sum(row.is_done for row in rows), "done", {"found": len(rows)})
    else:
        first = _json(reports[0])
        parts = chain([first], map(_json, reports[1:]))
        try:
            if "runs" in first:
                log = merging.sarif(parts)
                (run,) = log["runs"]
                text, said = parts_of(log), run["invocations"][0]["exitCodeDescription"]
            elif first.keys() == {"version", "findings"}:
                every = [*parts]
                if any(part.keys() != first.keys() for part in every):
                    raise ValueError
                known = [baseline.parse(json.dumps(part).encode()) for part in every]
                entries = frozenset().union(*known)
                text, said = baseline.dump(entries).removesuffix("\n"), f"{len(entries)} findings"
                _tell_of_paths(reports, output)
            else:
                report = merging.reports(parts)
                text, summary = parts_of(report), report["summary"]
                what = "read" if "read" in summary else "done"
                said = how_many(summary[what], what, summary)
        except SettingsError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            raise SettingsError("not all of these are reports that bnfold wrote") from None
    put(text, output)
    if output is not None:
        say(f"{output}: written, of {len(reports)} reports; {said}")


def _tell_of_paths(parts: Sequence[Path], output: Path | None) -> None:
    """Say what the paths in a baseline are relative to, where it is not beside its parts."""
    here = Path() if output is None else output.parent
    if any(path.parent.resolve() != here.resolve() for path in parts):
        say("warning: paths in a baseline are from its folder; these are of where the parts were")


def _json(path: Path) -> dict[str, Any]:
    from bnfold.model.container.guard import parse_json, read_whole

    name = printable(str(path))
    try:
        found = parse_json(read_whole(path, _MOST_BYTES), "the report")
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror or error}") from None
    except BnfoldError as error:
        raise SettingsError(f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{name}: no report of bnfold's")
    return found
