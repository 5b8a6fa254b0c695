"""What --resume keeps, and what it must not keep because something has changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import configure, model, run

from bnfold.cli import worker
from bnfold.cli.recorder import Recorder
from bnfold.cli.resuming import Resuming
from bnfold.errors import OutputError, SettingsError
from bnfold.fleet.row import Row
from bnfold.running import installed

RESUME = ("--resume", "rows.jsonl", "--format", "json")


@pytest.fixture(autouse=True)
def models(folder: Path) -> None:
    """Two models, one with an error."""
    Path("models").mkdir()
    model(Path("models/a.keras"), "good")
    model(Path("models/b.keras"), "bad", spoil=["bad"])


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were done, and not kept, since this was cleared."""
    found: list[str] = []
    perform = worker.perform

    def counted(request: dict[str, Any]) -> dict[str, Any]:
        answer = perform(request)
        if not answer.get("is_unchanged"):
            found.append(Path(request["path"]).name)
        return answer

    monkeypatch.setattr(worker, "perform", counted)
    return found


BOTH = ["a.keras", "b.keras"]


def test_a_baseline_that_changes_is_heeded(done: list[str]) -> None:
    run("models", "--write-baseline", "known.json")
    known = run("models", "--baseline", "known.json", *RESUME)
    assert known.exit_code == 0
    done.clear()
    assert run("models", "--baseline", "known.json", *RESUME).stdout == known.stdout
    assert done == []
    Path("known.json").write_text('{"version": 1, "findings": []}')
    assert run("models", "--baseline", "known.json", *RESUME).exit_code == 1
    assert done == BOTH


def test_a_baseline_of_the_settings_that_changes_is_heeded(done: list[str]) -> None:
    run("models", "--write-baseline", "known.json")
    configure('[tool.bnfold]\nbaseline = "known.json"\n')
    assert run("models", *RESUME).exit_code == 0
    Path("known.json").write_text('{"version": 1, "findings": []}')
    assert run("models", *RESUME).exit_code == 1


def test_suppressions_name_models_from_another_folder(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        '[[tool.bnfold.suppress]]\nlayer = "bad"\nrules = ["BN105"]\nreason = "x"\n'
        'model = "one/models/*"\n'
    )
    journal = Path("rows.jsonl").absolute()
    for name, code in (("one", 0), ("two", 1)):
        Path(name).mkdir()
        Path(name, "models").symlink_to("../models")
        monkeypatch.chdir(name)
        assert run("models", "--resume", journal).exit_code == code
        monkeypatch.chdir("..")


def test_a_product_that_changed_is_made_again(done: list[str]) -> None:
    options = ["--out-dir", "out", "--no-verify", *RESUME]
    run("models", *options, command="fold")
    done.clear()
    assert run("models", *options, command="fold").exit_code == 0
    assert done == []
    whole = Path("out/a.keras").read_bytes()
    Path("out/a.keras").write_bytes(b"PK")
    assert "exists already" in run("models", *options, command="fold").stdout
    assert done == ["a.keras"]
    done.clear()
    run("models", *options, "--force", command="fold")
    assert done == BOTH  # the options are others
    assert Path("out/a.keras").read_bytes() == whole


def verified(other: str) -> dict[str, Any]:
    """The request for a comparison with another file, as `verify` makes it."""
    words = ["verify", "--", "models/a.keras", other]
    return {
        "words": words,
        "path": "models/a.keras",
        "folder": os.getcwd(),
        "target": None,
        "products": [],
        "others": [other],
        "views": {},
        "known": None,
        "keeps": True,
    }


def test_what_a_model_is_compared_with_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: object, **__: object) -> None:
        found = worker.recorder.current()
        assert isinstance(found, Recorder)
        found.report = {}

    monkeypatch.setattr(worker, "command", command)
    Path("other.keras").write_bytes(b"1")
    first = worker.perform(verified("other.keras"))
    known = {"known": {"sha256": first["sha256"], "files": first["files"]}}
    assert "is_unchanged" in worker.perform(verified("other.keras") | known)
    Path("other.keras").write_bytes(b"2")
    assert "is_unchanged" not in worker.perform(verified("other.keras") | known)
    Path("other").mkdir()
    Path("other/link").symlink_to("../other.keras")  # no digest is made of what has links
    first = worker.perform(verified("other"))
    known = {"known": {"sha256": first["sha256"], "files": first["files"]}}
    assert "is_unchanged" not in worker.perform(verified("other") | known)


def rewrite(name: str) -> Callable[[], object]:
    return lambda: Path(name).write_text("another")


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["--data", "x.npy"], rewrite("x.npy")),
        (["--labels", "x.npy"], rewrite("x.npy")),
        (["--import", "custom.layers"], rewrite("custom/layers.py")),
        (["--import", "single"], rewrite("single.py")),
        ([], rewrite("of_settings.npy")),
        ([], lambda: configure("[tool.bnfold.prepare]\nstrict = true\n")),
    ],
)
def test_what_a_result_depends_on_is_in_its_digest(
    options: list[str], change: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("custom").mkdir()
    for name in ("custom/__init__.py", "custom/layers.py", "single.py", "x.npy", "of_settings.npy"):
        Path(name).write_text("")
    configure('[tool.bnfold.prepare]\ndata = "of_settings.npy"\n')
    monkeypatch.syspath_prepend(str(Path.cwd()))
    found = digests(monkeypatch)

    def prepare() -> str:
        run("models", "--out-dir", "out", *options, "--format", "jsonl", command="prepare")
        return found.pop()

    first = prepare()
    assert prepare() == first
    change()
    assert prepare() != first


def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What tells one set of conditions from another, of models with which nothing is done."""
    found: list[str] = []

    def perform(request: dict[str, Any]) -> dict[str, Any]:
        found.append(request["options"])
        return {"exit_code": 2, "error": "not done"}

    monkeypatch.setattr(worker, "perform", perform)
    return found


def test_versions_of_libraries_count_where_they_do_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = digests(monkeypatch)
    versions = {"keras": "3.10", "onnxruntime": "1.20"}
    monkeypatch.setattr(installed, "installed_version", versions.get)

    def options(command: str) -> str:
        run("models", "--out-dir", "out", "--format", "jsonl", command=command)
        return found.pop()

    def inspected() -> str:
        run("models", "--format", "jsonl")
        return found.pop()

    exported, looked = options("export"), inspected()
    versions["onnxruntime"] = "1.21"
    assert options("export") != exported
    assert inspected() == looked
    versions["keras"] = "3.11"
    assert inspected() != looked


def row(path: str) -> Row:
    return Row(path, 0, report={})


def test_results_are_kept_as_they_come_and_not_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bnfold.cli import many

    def engine(_: object, requests: list[dict[str, Any]]) -> Any:
        for number in reversed(range(len(requests))):
            yield number, worker.perform(requests[number])
            seen.append(Path("rows.jsonl").read_text().count("\n"))

    seen: list[int] = []
    monkeypatch.setattr(many.Run, "_engine", engine)
    run("models", *RESUME)
    assert seen == [1]  # of the last model, while the first was still to be done
    kept = [json.loads(line)["path"] for line in Path("rows.jsonl").read_text().splitlines()]
    assert kept == ["models/a.keras", "models/b.keras"]


def test_two_runs_do_not_write_to_one_file() -> None:
    with Resuming(Path("rows.jsonl")) as one:
        one.add(row("a"))
        with (
            pytest.raises(SettingsError, match="another run is writing to it"),
            Resuming(Path("rows.jsonl")),
        ):
            pass
        one.add(row("b"))
    with Resuming(Path("rows.jsonl")) as two:
        assert two.known("a", "") is not None
        assert two.known("b", "") is not None
        assert two.known("b", "others") is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_file_for_which_there_is_no_room_is_named() -> None:
    with Resuming(Path("rows.jsonl")) as found:
        assert found._stream is not None
        found._stream.close()
        found._stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with pytest.raises(OutputError, match=r"^rows\.jsonl: No space left on device"):
            found.add(row("a"))
        found._stream.close()


def test_it_is_said_how_many_models_were_not_done_again() -> None:
    for name in ("a", "b", "c"):
        model(Path(f"models/{name}.keras"), "good")
    assert "did not change" not in run("models", "--resume", "rows.jsonl").stderr
    model(Path("models/b.keras"), "bad", spoil=["bad"])
    said = run("models", "--resume", "rows.jsonl").stderr
    assert said == "bnfold: rows.jsonl: has 2 of 3 models, which did not change\n"
