"""Many models at a time: one report, whoever did the work and however often it was interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import legacy_file
from places import ROOT
from projects import model, run
from schemas import validate

from bnfold.cli import many, pages, worker
from bnfold.cli.inspect import inspect
from bnfold.fleet import pool, row
from bnfold.fleet.row import Row
from bnfold.model.container import unchanging
from bnfold.running import requirements
from bnfold.supervision import link

pytestmark = pytest.mark.usefixtures("folder")

BROKEN = b"PK\x03\x04"


@pytest.fixture
def models() -> Path:
    """Seven models in two folders, one with an error, and two that cannot be read."""
    for name in ("b", "a", "sub/a", "sub/c", "sub/deep/d", "sub/deep/e"):
        path = Path("models", f"{name}.keras")
        path.parent.mkdir(parents=True, exist_ok=True)
        model(path, "good", "other", spoil=["other"] if name == "sub/c" else [])
    legacy_file(Path("models/old.h5"))
    for name in ("cut", "sub/cut"):
        Path("models", f"{name}.keras").write_bytes(BROKEN)
    return Path("models")


def bnfold(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """A command as users have it, with workers of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bnfold", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- the short form ---


def test_each_model_has_a_line_the_worst_first(models: Path) -> None:
    result = run(models)
    assert result.exit_code == 2
    table = result.stdout.partition("error BN105")[0]
    names = [word for word in table.split() if word.endswith(".keras")]
    assert names[0] == "models/sub/c.keras"
    assert sorted(names[1:]) == [
        *("models/a.keras", "models/b.keras", "models/sub/a.keras"),
        *("models/sub/deep/d.keras", "models/sub/deep/e.keras"),
    ]
    assert "not read models/cut.keras: " in result.stdout
    assert "error BN105 models/sub/c.keras, other: " in result.stdout
    assert "1 error" in result.stdout.splitlines()[-1]
    assert result.stdout.endswith("7 of 9 read\n")
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [
        *(" models/cut.keras", " models/sub/cut.keras"),
    ]


def test_a_report_is_unpacked_for_the_table_and_for_the_totals_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    unpacked = row.unpacked
    monkeypatch.setattr(row, "unpacked", lambda value: found.append(value) or unpacked(value))
    run(models, "--ignore", "BN105")
    assert len(found) == 2 * 7


@pytest.mark.skipif(os.name == "nt", reason="nobody closes it there")
def test_standard_error_may_be_closed_from_the_start(models: Path) -> None:
    words = ["inspect", "models/a.keras", "models/b.keras", "--format", "json"]
    python = [sys.executable, "-m", "bnfold", *words]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *python],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert (closed.returncode, closed.stdout) == (0, bnfold(*words).stdout)


def test_in_full_each_model_is_shown_as_it_is_alone(models: Path) -> None:
    alone = run("models/sub/c.keras").stdout
    every = run(models, "--full")
    assert alone in every.stdout
    assert every.stdout.endswith("7 of 9 read\n")
    run(models, "--full", "--output", "report.txt")
    assert alone in Path("report.txt").read_text()


def test_one_model_without_progress_is_shown_in_full(models: Path) -> None:
    assert run("models/a.keras", "-q").stdout == run("models/a.keras").stdout


def test_a_pattern_stands_for_what_it_matches(models: Path) -> None:
    found = run("models/**/[ad].keras", "--format", "jsonl")
    assert [line["path"] for line in lines(found.stdout)] == [
        *("models/a.keras", "models/sub/a.keras", "models/sub/deep/d.keras"),
    ]
    nothing = run("models/*.none")
    assert nothing.exit_code == 2
    assert nothing.stderr == "bnfold: models/*.none: no such file\n"


def test_a_file_with_the_name_of_a_pattern_is_that_file() -> None:
    model(Path("m[1].keras"), "good")
    assert "1 can be folded" in run("m[1].keras").stdout


# --- one report ---


@pytest.mark.parametrize("ending", ["jsonl", "json", "sarif", "junit", "markdown", "github"])
@pytest.mark.few(2)
def test_workers_and_one_process_report_the_same(
    ending: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(models, "--format", ending).stdout
    monkeypatch.setattr(many, "IN_PROCESS", False)
    assert subprocess  # which this starts
    assert run(models, "--format", ending, "--jobs", "2").stdout == found


@pytest.mark.parametrize("ending", ["json", "jsonl", "sarif"])
def test_shards_are_a_partition_and_merge_to_the_report_on_all(models: Path, ending: str) -> None:
    """There are more of them than models, so that some are empty; none of these may be missing."""
    run(models, "--output", f"all.{ending}")
    parts = [f"{number}.{ending}" for number in range(1, 13)]
    for number, part in enumerate(parts, start=1):
        run(models, "--shard", f"{number}/12", "--output", part)
    assert run(*reversed(parts), "--output", f"merged.{ending}", command="merge").exit_code == 0
    assert Path(f"merged.{ending}").read_bytes() == Path(f"all.{ending}").read_bytes()
    for number, part in enumerate(parts, start=1):
        refused = run(*(one for one in parts if one != part), command="merge")
        assert refused.exit_code == 2
        assert refused.stderr == f"bnfold: of 12 shards these are missing: {number}\n"


@pytest.mark.parametrize("ending", ["json", "jsonl", "sarif"])
def test_of_a_model_in_several_parts_there_is_one_report(models: Path, ending: str) -> None:
    run(models, "--output", f"all.{ending}")
    whole = Path(f"all.{ending}").read_text()
    parts = [f"{number}.{ending}" for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        run(models, "--shard", f"{number}/3", "--output", part)
    assert run(*parts, *parts[:2], command="merge").stdout == whole
    run(models / "sub", "--output", f"sub.{ending}")
    assert run(f"sub.{ending}", f"all.{ending}", command="merge").stdout == whole
    Path("models/sub/c.keras").write_bytes(BROKEN)
    run(models / "sub", "--output", f"sub.{ending}")
    refused = run(f"sub.{ending}", f"all.{ending}", command="merge")
    assert "two reports on models/sub/c.keras differ" in refused.stderr


@pytest.mark.parametrize("ending", ["json", "jsonl", "sarif", "html", "txt"])
def test_a_part_of_which_nothing_can_be_read_has_a_report(ending: str) -> None:
    Path("models").mkdir()
    Path("models/cut.keras").write_bytes(BROKEN)
    result = run("models", "--shard", "1/1", "--output", f"report.{ending}")
    assert result.exit_code == 2
    assert result.stderr.count("models/cut.keras: ") == 1
    assert "models/cut.keras" in Path(f"report.{ending}").read_text()
    if ending in ("json", "jsonl", "sarif"):
        assert run(f"report.{ending}", command="merge").exit_code == 0


def test_a_shard_that_was_killed_is_not_taken_for_a_whole_one(models: Path) -> None:
    run(models, "--shard", "1/2", "--output", "1.jsonl")
    whole = run(models, "--shard", "2/2", "--format", "jsonl").stdout
    validate(lines(whole)[-1], "ending")
    assert lines(whole)[-1]["models"] == len(lines(whole)) - 1 >= 2
    Path("2.jsonl").write_text(whole)
    assert run("1.jsonl", "2.jsonl", command="merge").exit_code == 0
    written = whole.splitlines(keepends=True)
    for left, says in (
        (written[:-1], "2.jsonl: the run of shard 2/2 did not come to its end"),
        (written[1:], "2.jsonl: the run of shard 2/2 did not come to its end"),
        ([], "of 2 shards these are missing: 2"),
    ):
        Path("2.jsonl").write_text("".join(left))
        refused = run("1.jsonl", "2.jsonl", command="merge")
        assert (refused.exit_code, refused.stderr) == (2, f"bnfold: {says}\n")


def test_parts_of_json_lines_may_be_in_one_file(models: Path) -> None:
    """As cat and logs of jobs have them."""
    run(models, "--output", "all.jsonl")
    parts = [run(models, "--shard", f"{one}/3", "--format", "jsonl").stdout for one in (1, 2, 3)]
    Path("two.jsonl").write_text(parts[2] + parts[0])
    Path("three.jsonl").write_text(parts[1])
    found = run("two.jsonl", "three.jsonl", command="merge")
    assert found.stdout == Path("all.jsonl").read_text()
    Path("two.jsonl").write_text(parts[2].partition("\n")[2] + parts[0])
    refused = run("two.jsonl", "three.jsonl", command="merge")
    assert refused.stderr == "bnfold: two.jsonl: the run of shard 3/3 did not come to its end\n"


def test_the_file_of_a_resumed_shard_merges_too(models: Path) -> None:
    run(models, "--format", "jsonl", "--output", "all.jsonl")
    for number in (1, 2):
        for _ in range(2):
            run(models, "--shard", f"{number}/2", "--resume", f"{number}.jsonl", "-q")
    assert run("1.jsonl", "2.jsonl", command="merge").stdout == Path("all.jsonl").read_text()


@pytest.mark.parametrize("command", ["inspect", "fold"])
def test_what_fail_fast_leaves_out_is_counted(models: Path, command: str) -> None:
    writes = ["--out-dir", "out", "--no-verify"] if command == "fold" else []
    words = [models / "sub", *writes, "--fail-fast"]
    said = run(*words, command=command).stdout.splitlines()[-1]
    assert "of 5 " in said
    assert " left out" in said
    result = run(*words, "--format", "json", *(["--force"] if writes else []), command=command)
    found = json.loads(result.stdout)
    validate(found, "many" if writes else "inspect")
    counted = found["summary"]
    done = len(found["reports" if writes else "models"]) + len(
        found["failed" if writes else "unreadable"]
    )
    assert counted["found"] == 5 == done + counted["left_out"]
    part = ["--shard", "1/1", "--output", "part.jsonl", *(["--force"] if writes else [])]
    run(*words, *part, command=command)
    refused = run("part.jsonl", command="merge")
    assert "did not come to its end" in refused.stderr


def test_a_merged_log_says_what_was_left_out(models: Path) -> None:
    run(models / "sub", "--fail-fast", "--output", "part.sarif")
    alone = json.loads(Path("part.sarif").read_text())["runs"][0]["invocations"][0]
    merged = json.loads(run("part.sarif", command="merge").stdout)["runs"][0]["invocations"][0]
    assert merged == alone
    assert ", 3 left out" in merged["exitCodeDescription"]


def test_what_verify_compares_with_no_model_is_said(models: Path) -> None:
    for name in ("sub/other.onnx", "sub/left.tflite", "saved/saved_model.pb", "notes.txt"):
        path = Path("out", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    model(Path("out/more.keras"), "bn")
    others = ["out/more.keras", "out/saved", "out/sub/left.tflite", "out/sub/other.onnx"]
    result = run(models, "out", command="verify")
    assert result.stdout.endswith(f"0 of 9 done; compared with no model: {', '.join(others)}\n")
    found = json.loads(run(models, "out", "--format", "json", command="verify").stdout)
    validate(found, "many")
    assert found["summary"]["uncompared"] == others


def test_baselines_merge() -> None:
    for number in (1, 2):
        path = model(Path(f"{number}.keras"), "bad", spoil=["bad"])
        run(path, "--write-baseline", f"{number}.json")
    merged = run("1.json", "2.json", "--output", "known.json", command="merge")
    assert "paths" not in merged.stderr
    result = run("1.keras", "2.keras", "--baseline", "known.json", "--fail-on", "info")
    assert result.exit_code == 0
    Path("other").mkdir()
    moved = run("1.json", "2.json", "--output", "other/known.json", command="merge")
    assert "warning: paths in a baseline are from its folder" in moved.stderr


@pytest.mark.parametrize("ending", ["json", "jsonl", "sarif"])
def test_merging_says_how_many_models_were_read(ending: str, models: Path) -> None:
    for number in (1, 2):
        run(models, "--shard", f"{number}/2", "--output", f"{number}.{ending}")
    merged = run(f"1.{ending}", f"2.{ending}", "--output", f"all.{ending}", command="merge")
    what = "done" if ending == "jsonl" else "read"
    assert merged.stderr == f"bnfold: all.{ending}: written, of 2 reports; 7 of 9 {what}\n"


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (["{}"], "not all of these are reports"),
        (["[]"], "no report of bnfold's"),
        (["nonsense"], "a.json: "),
        (['{"runs": [{}]}'], "not all of these are reports that bnfold wrote"),
        (['{"version": 1, "findings": []}', "{}"], "not all of these are reports"),
    ],
)
def test_what_is_no_report_is_not_merged(contents: Sequence[str], says: str) -> None:
    names = [f"{letter}.json" for letter in "ab"[: len(contents)]]
    for name, content in zip(names, contents, strict=True):
        Path(name).write_text(content)
    result = run(*names, command="merge")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_reports_of_two_runs_that_differ_are_not_merged(models: Path) -> None:
    run("models/a.keras", "models/b.keras", "--output", "one.json")
    run("models/a.keras", "models/b.keras", "--output", "two.json", "--ignore", "BN")
    result = run("one.json", "two.json", command="merge")
    assert result.exit_code in (0, 2)
    run("models/sub/c.keras", "models/b.keras", "--output", "one.json")
    run("models/sub/c.keras", "models/b.keras", "--output", "two.json", "--ignore", "BN105")
    result = run("one.json", "two.json", command="merge")
    assert result.exit_code == 2
    assert "two reports on models/sub/c.keras differ" in result.stderr


@pytest.mark.parametrize(
    "text",
    ["0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "01/3", "1/03", "-1/3", "¹/3", "", "1/9999999999"],
)
def test_what_is_no_shard_is_refused(models: Path, text: str) -> None:
    result = run(models, f"--shard={text}")
    assert result.exit_code == 2
    assert "is no shard" in result.stderr


@pytest.mark.parametrize("shard", ["01/3", "4/3", "٣/3", "x"])
def test_what_is_called_like_no_shard_is_not_merged(models: Path, shard: str) -> None:
    run(models, "--shard", "1/1", "--output", "part.json")
    part = json.loads(Path("part.json").read_text())
    part["summary"]["shard"] = shard
    Path("part.json").write_text(json.dumps(part))
    refused = run("part.json", command="merge")
    assert refused.exit_code == 2
    assert refused.stderr == f"bnfold: {shard!r} is no shard: write 3/20 for the third of twenty\n"


def test_a_line_follows_its_schema(models: Path) -> None:
    found = lines(run(models, "--format", "jsonl").stdout)
    assert len(found) == 9
    for line in found:
        validate(line, "line")


# --- what a model does to others ---


def test_a_failing_model_stops_nothing_but_with_fail_fast(models: Path) -> None:
    every = run(models, "--format", "jsonl")
    assert len(lines(every.stdout)) == 9
    first = run(models, "--format", "jsonl", "--fail-fast")
    assert first.exit_code == 2
    assert [one["exit_code"] for one in lines(first.stdout)] == [0, 0, 2]


DEATHS = """
import os, sys
from bnfold.cli import worker

perform = worker.perform

def deadly(request):
    if "deadly" in request["path"]:
        os.kill(os.getpid(), 9)
    return perform(request)

worker.perform = deadly

def main(pipe):
    worker.main(pipe)
"""


def test_a_model_that_kills_its_process_is_told_and_the_next_has_another(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("deaths.py").write_text(DEATHS)
    shutil.copy("models/a.keras", "models/deadly.keras")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(many, "IN_PROCESS", False)
    monkeypatch.setattr(pool, "WORKER", "deaths")
    assert subprocess  # which this starts
    found = lines(run(models, "--format", "jsonl", "--jobs", "2").stdout)
    assert [one["exit_code"] for one in found] == [0, 0, 2, 2, 0, 0, 1, 2, 0, 0]
    assert "was killed" in found[3]["error"]
    assert found[3]["error"].startswith("models/deadly.keras: ")


HARM = """
import itertools, os, sys
import bnfold.__main__ as entry
from bnfold.cli import worker
from bnfold.jobs import inspect
from bnfold.supervision import spawning

planned = inspect.planned

def harmful(model, **options):
    name = os.path.basename(str(model.given))
    if name == "killed.keras":
        os.kill(os.getpid(), 9)
    elif name == "crashed.keras":
        os.abort()
    elif name == "ended.keras":
        os._exit(3)
    elif name == "slow.keras":
        with open("slow", "a") as file:
            file.write(f"{os.getpid()}\\n")
        sum(itertools.repeat(0))
    elif name == "large.keras":
        bytearray(4 << 30)
    return planned(model, **options)

inspect.planned = harmful
"""
ONLY_ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="where there are copies")
NEW = "spawning.may_copy = lambda: False\n"


def harmed(
    models: Path, *words: object, before: str = "", stderr: int = subprocess.PIPE
) -> "subprocess.Popen[str]":
    """Inspect as users do, by workers that some models do harm to."""
    Path("harm.py").write_text(HARM)
    code = "import harm; from harm import *\nfrom bnfold.fleet import pool\n"
    code += "import sys; pool.WORKER = 'harmed'\n" + before
    Path("harmed.py").write_text("import harm\nfrom bnfold.cli.worker import main\n")
    arguments = ["inspect", *map(str, (models, "--format", "jsonl", "--jobs", 2, *words))]
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.argv[1:] = {arguments!r}\nentry.run()"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path.cwd()}"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.mark.parametrize("before", ["", NEW], ids=["copies", "new processes"])
@ONLY_ON_LINUX
def test_what_a_model_does_to_its_process_is_told_and_limits_are_those_of_each(
    models: Path, before: str
) -> None:
    names = ("killed", "crashed", "ended", "slow", "large")
    for name in names:
        shutil.copy("models/a.keras", f"models/{name}.keras")
    started = harmed(models, "--timeout", 2, "--memory", "600M", before=before)
    out, said = started.communicate(timeout=100)
    assert started.returncode == 2
    assert "Traceback" not in said
    found = {one["path"]: one["error"] for one in lines(out)}
    assert len(found) == 9 + len(names)
    told = {name: found.pop(f"models/{name}.keras") for name in names}
    assert "was killed" in told["killed"]
    assert "crashed with SIGABRT while reading it" in told["crashed"]
    assert "ended early, with exit code 3 while reading it" in told["ended"]
    assert "took more than 2 s while reading it" in told["slow"]
    assert "needs more than 600 MiB of memory while reading it" in told["large"]
    assert [path for path, error in found.items() if error] == [
        *("models/cut.keras", "models/sub/cut.keras"),
    ]


def never() -> str:
    """Have new processes fail to start."""
    Path("never.py").write_text("def start(*_, **__): raise OSError(1, 'not so')\n")
    return "import never; spawning.start = never.start\n"


@ONLY_ON_LINUX
def test_a_bar_whose_thread_draws_it_begins_after_the_copies(models: Path) -> None:
    terminal, bar = os.openpty()
    started = harmed(models, before=never(), stderr=bar)
    os.close(bar)
    out, _ = started.communicate(timeout=100)
    drawn = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "0/9" in drawn
    assert len([one for one in lines(out) if one["error"]]) == 2


@ONLY_ON_LINUX
def test_workers_that_only_read_are_copies(models: Path) -> None:
    """As long as none is lost, no process of Python's is started anew."""
    failed = {}
    for before in ("", NEW):
        started = harmed(models, before=never() + before)
        out, _ = started.communicate(timeout=100)
        failed[before] = [one["error"] for one in lines(out) if one["error"]]
    assert len(failed[""]) == 2
    assert len(failed[NEW]) == 9
    assert all("cannot start: not so" in error for error in failed[NEW])


@ONLY_ON_LINUX
@pytest.mark.parametrize("whom", ["supervisor", "command"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("before", ["", NEW], ids=["copies", "new processes"])
@pytest.mark.few(4)
def test_workers_end_with_the_run(models: Path, whom: str, end: int, before: str) -> None:
    for name in ("a", "b"):
        (models / name).mkdir()
        shutil.copy("models/sub/a.keras", models / name / "slow.keras")
    started = harmed(models, before=before)
    while not (Path("slow").exists() and Path("slow").read_text().count("\n") == 2):
        time.sleep(0.02)
        assert started.poll() is None
    command = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text()
    os.kill(started.pid if whom == "supervisor" else int(command), end)
    _, said = started.communicate(timeout=30)
    assert "Traceback" not in said
    workers = [int(line) for line in Path("slow").read_text().split()]
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{one}").exists() for one in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_limits_are_those_of_each_model(models: Path) -> None:
    models = models / "sub/deep"
    result = bnfold("inspect", models, "--format", "jsonl", "--timeout", "60", "--memory", "1G")
    assert [one["exit_code"] for one in lines(result.stdout)] == [0, 0]


# --- the options of each ---


def task(command: str, *words: str) -> dict[str, Any]:
    about = {"path": words[-1], "folder": ".", "target": None, "products": [], "others": []}
    how = {"views": {}, "known": None, "options": "", "keeps": False}
    return {"words": [command, *words], **about, **how}


def found(request: dict[str, Any]) -> Row:
    answer = worker.perform(request)
    del answer["is_spent"]
    return Row(request["path"], **answer | {"seconds": None})


LINES = (
    *(["--", "a.keras"], ["--", "b.keras"], ["--select", "BN4", "--", "a.keras"]),
    *(["--", "a.keras"], ["--", "none.keras"], ["--select", "BN105", "--", "bad.keras"]),
    *(["--select", "BN105", "--", "a.keras"], ["--", "bad.keras"], ["--", "b.keras"]),
    *(["--select", "none", "--", "a.keras"], ["--select", "none", "--", "b.keras"]),
    *(["--fail-on", "info", "--sha256", "0" * 64, "--", "a.keras"], ["--config", "--", "--", "a"]),
    *(["--timeout", "5", "--", "a.keras"], ["--timeout", "5", "--", "b.keras"], ["--", "a.keras"]),
)


def test_a_task_has_the_options_of_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier line came to is taken for equal options alone."""
    for name, spoil in (("a", []), ("b", []), ("bad", ["other"])):
        model(Path(f"{name}.keras"), "good", "other", spoil=spoil)
    limits: list[dict[str, Any]] = []
    monkeypatch.setattr(link, "allow", lambda **given: limits.append(given))
    after_others = [found(task("inspect", *line)) for line in LINES]
    told, limits[:] = limits[:], []
    alone = []
    for line in LINES:
        monkeypatch.setattr(inspect, "_parsed", None)
        alone.append(found(task("inspect", *line)))
    assert after_others == alone
    assert told == limits
    assert {row.exit_code for row in alone} == {0, 1, 2}
    assert {"seconds": 5.0} in told


def test_the_options_of_a_run_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        model(Path(f"{name}.keras"), "good")
    monkeypatch.setattr(inspect, "_parsed", None)
    parsers = []
    make = inspect.make_parser
    monkeypatch.setattr(inspect, "make_parser", lambda ctx: parsers.append(ctx) or make(ctx))
    for name in ("a", "b", "c"):
        assert found(task("inspect", "--select", "BN4", "--", f"{name}.keras")).is_done
    assert len(parsers) == 1


def test_what_a_fold_was_told_is_told_from_defaults_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a", "b"):
        model(Path(f"{name}.keras"), "good")
    said = []
    for name in ("a", "b"):
        line = ("--no-verify", "--rtol", "0", "--", f"{name}.keras", f"{name}-out.keras")
        said.append(found(task("fold", *line)).error)
    assert said == ["--no-verify contradicts --rtol ('bnfold fold --help' helps)"] * 2


# --- interrupted, and started again ---


class Counting:
    """Counts the models that a worker was asked about and that were not unchanged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        perform = worker.perform

        def counted(request: dict[str, Any]) -> dict[str, Any]:
            answer = perform(request)
            if not answer.get("is_unchanged"):
                self.paths.append(request["path"])
            return answer

        monkeypatch.setattr(worker, "perform", counted)

    def taken(self) -> list[str]:
        found, self.paths = self.paths, []
        return found


def test_what_is_done_and_has_not_changed_is_not_done_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    failing = ["models/cut.keras", "models/sub/cut.keras"]
    first = run(models, "--format", "json", "--resume", "rows.jsonl")
    assert len(counting.taken()) == 9
    assert run(models, "--format", "json", "--resume", "rows.jsonl").stdout == first.stdout
    assert counting.taken() == failing
    model(models / "b.keras", "good", "another")
    run(models, "--resume", "rows.jsonl")
    assert counting.taken() == ["models/b.keras", *failing]
    run(models, "--resume", "rows.jsonl", "--target-dtype", "float16")
    assert len(counting.taken()) == 9


def test_settings_that_change_count_as_another_command(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    run(models, "--resume", "rows.jsonl")
    counting.taken()
    Path("pyproject.toml").write_text('[tool.bnfold]\nignore = ["BN4"]\n')
    run(models, "--resume", "rows.jsonl")
    assert len(counting.taken()) == 9


def test_a_journal_that_was_cut_off_is_gone_on_with(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(models, "--resume", "rows.jsonl")
    whole = Path("rows.jsonl").read_text()
    Path("rows.jsonl").write_text(whole[: len(whole) * 2 // 3])
    kept = whole[: len(whole) * 2 // 3].count("\n")
    counting = Counting(monkeypatch)
    run(models, "--resume", "rows.jsonl")
    assert len(counting.taken()) == 9 - kept + 1  # one of those that are kept cannot be read
    assert Path("rows.jsonl").read_text() == whole


@pytest.mark.parametrize("content", ["nonsense\n{}\n", "{}\n{}\n", "[1]\n\n[2]\n"])
def test_what_is_no_journal_is_left_alone(models: Path, content: str) -> None:
    Path("rows.jsonl").write_text(content)
    result = run(models, "--resume", "rows.jsonl")
    assert result.exit_code == 2
    assert result.stderr == "bnfold: rows.jsonl: line 1 is no row of bnfold's JSON Lines\n"
    assert Path("rows.jsonl").read_text() == content


def test_an_interrupted_run_leaves_what_it_has_done(models: Path) -> None:
    for number in range(90):
        shutil.copy("models/a.keras", f"models/sub/{number:03}.keras")
    started = subprocess.Popen(
        [sys.executable, "-m", "bnfold", "inspect", models, "--resume", "rows.jsonl"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = Path("rows.jsonl")
    while not (journal.exists() and journal.read_text().count("\n") > 5):
        time.sleep(0.02)
        assert started.poll() is None
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert 5 < journal.read_text().count("\n") < 99
    assert bnfold("inspect", models, "--resume", "rows.jsonl", "-q").stdout.endswith(
        "97 of 99 read\n"
    )


# --- what is written for each ---


def test_folded_models_keep_their_folders(models: Path) -> None:
    result = run(models, "--out-dir", "out", "--no-verify", command="fold")
    assert result.exit_code == 2
    made = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.*")}
    assert made == {
        *("a.keras", "b.keras", "old.h5", "sub/a.keras", "sub/c.keras"),
        *("sub/deep/d.keras", "sub/deep/e.keras"),
    }
    alone = run("models/a.keras", "alone.keras", "--no-verify", command="fold")
    assert alone.exit_code == 0
    assert Path("out/a.keras").read_bytes() == Path("alone.keras").read_bytes()
    again = run(models, "--out-dir", "out", "--no-verify", command="fold")
    assert again.stderr.count("exists already") == 0
    assert again.stdout.count("exists already") == 7
    assert again.exit_code == 2


def test_a_folder_that_nothing_is_written_to_is_not_left() -> None:
    Path("models/sub").mkdir(parents=True)
    Path("models/sub/cut.keras").write_bytes(BROKEN)
    model(Path("models/a.keras"), "good")
    run("models", "--out-dir", "out", "--no-verify", command="fold")
    assert [path.name for path in Path("out").iterdir()] == ["a.keras"]


def test_a_model_that_fails_takes_no_folder_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    perform, seen = worker.perform, []

    def looked(request: dict[str, Any]) -> dict[str, Any]:
        answer = perform(request)
        seen.append(Path("out/sub").is_dir())  # others may be about to write there
        return answer

    monkeypatch.setattr(worker, "perform", looked)
    Path("models/sub").mkdir(parents=True)
    Path("models/sub/cut.keras").write_bytes(BROKEN)
    run("models", "--out-dir", "out", "--no-verify", command="fold")
    assert seen == [True]
    assert not Path("out").exists()


def test_a_product_that_is_gone_is_made_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--out-dir", "out", "--no-verify", "--resume", "rows.jsonl"]
    run(models, *options, command="fold")
    Path("out/b.keras").unlink()
    counting = Counting(monkeypatch)
    run(models, *options, command="fold")
    assert "models/b.keras" in counting.taken()
    assert Path("out/b.keras").exists()


def test_two_models_do_not_become_one_file(models: Path) -> None:
    result = run("models/a.keras", "models/sub/a.keras", "--out-dir", "out", command="fold")
    assert result.exit_code == 2
    assert "would both become out/a.keras; --exclude leaves one out" in result.stderr
    assert not Path("out").exists()


def test_json_of_many_follows_its_schema(models: Path) -> None:
    result = run(models, "--out-dir", "out", "--no-verify", "--format", "json", command="fold")
    found = json.loads(result.stdout)
    validate(found, "many")
    assert found["summary"] == {"found": 9, "done": 7}
    assert [one["path"] for one in found["failed"]] == [
        *("models/cut.keras", "models/sub/cut.keras"),
    ]
    lined = run(models, "--out-dir", "two", "--no-verify", "--format", "jsonl", command="fold")
    for line in lines(lined.stdout):
        validate(line, "line")


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("fold", ["models/a.keras"], "where is the result to go?"),
        ("fold", ["a", "b", "c"], "many models need --out-dir"),
        ("fold", ["a", "b", "--jobs", "2"], "--jobs is for many models"),
        ("fold", ["a", "b", "--shard", "1/2"], "--shard is for many models"),
        ("export", ["models/a.keras"], "where is the result to go?"),
        ("export", ["a", "b.onnx", "--to", "onnx"], "--to goes with --out-dir"),
        ("export", ["a", "--out-dir", "o", "--precision", "float16"], "says the precision"),
        ("prepare", ["models/a.keras"], "where is the result to go?"),
        ("verify", ["models/a.keras"], "Missing argument 'OTHER'"),
        ("verify", ["models", "models/a.keras"], "is no folder with something for each"),
        ("inspect", ["models", "--engine", "dask"], "--scheduler ADDRESS go together"),
        ("inspect", ["models", "--scheduler", "x"], "--scheduler ADDRESS go together"),
        ("inspect", ["models", "--full", "--resume", "r"], "--resume keeps what is in JSON"),
        ("inspect", ["models", "--format", "html", "--resume", "r"], "--resume keeps"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    models: Path, command: str, arguments: list[str], says: str
) -> None:
    before = sorted(Path().rglob("*"))
    result = run(*arguments, command=command)
    assert result.exit_code == 2
    assert says in result.stderr
    assert sorted(Path().rglob("*")) == before


# --- pages ---


def test_more_models_than_a_page_holds_get_an_index(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_TOGETHER", 10)
    few = run(models, "--format", "html").stdout
    assert few.count("<article") == 7
    for number in range(pages.MOST_TOGETHER):
        shutil.copy("models/a.keras", f"models/sub/{number:03}.keras")
    refused = run(models, "--format", "html")
    assert refused.exit_code == 2
    assert "need --output FILE" in refused.stderr
    run(models, "--output", "report.html")
    index = Path("report.html").read_text()
    written = sorted(Path("report_pages").iterdir())
    assert len(written) == 7 + pages.MOST_TOGETHER
    for page in written:
        assert f'href="report_pages/{page.name}"' in index
        assert page.read_text().count("<article") == 1
    assert index.index("models/sub/c.keras") < index.index("models/sub/000.keras")
    assert "models/cut.keras" in index
    run(models, "--output", "report.html")
    Path("report_pages/own.txt").write_text("mine")
    kept = run(models, "--output", "report.html")
    assert kept.exit_code == 2
    assert Path("report_pages/own.txt").read_text() == "mine"


def test_where_no_pages_can_be_is_said_before_anything_is_done(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_TOGETHER", 3)
    Path("report_pages").mkdir()
    Path("report_pages/own.txt").write_text("mine")
    counting = Counting(monkeypatch)
    assert "something else than pages" in run(models, "--output", "report.html").stderr
    assert "need --output FILE" in run(models, "--format", "html").stderr
    assert counting.taken() == []


def test_pages_of_what_fail_fast_leaves_have_an_index(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether models are together on a page does not depend on how many are done in the end."""
    monkeypatch.setattr(pages, "MOST_TOGETHER", 4)
    run(models / "sub", "--fail-fast", "--output", "report.html")
    assert {one.name for one in Path("report_pages").iterdir()} == {"00001.html", "00002.html"}
    assert ">2 models</h1>" in Path("report.html").read_text()
    assert ">a.keras</h1>" in Path("report_pages/00001.html").read_text()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_pages_of_an_interrupted_run_replace_nothing(models: Path, end: str) -> None:
    for number in range(90):
        shutil.copy("models/a.keras", f"models/sub/{number:03}.keras")
    Path("report_pages").mkdir()
    Path("report_pages/00001.html").write_text("old page")
    Path("report.html").write_text("old")
    started = subprocess.Popen(
        [sys.executable, "-m", "bnfold", "inspect", models, "--output", "report.html"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    while len([*Path().glob(".bnfold-*/report_pages/*")]) < 5:  # written as they come
        time.sleep(0.01)
        assert started.poll() is None
    started.send_signal(getattr(signal, end))
    started.wait(timeout=30)
    assert Path("report.html").read_text() == "old"
    assert [one.read_text() for one in Path("report_pages").iterdir()] == ["old page"]
    assert bnfold("inspect", models, "--output", "report.html").returncode == 2
    assert len([*Path("report_pages").iterdir()]) == 97
    assert not [*Path().glob(".bnfold-*")]


@pytest.mark.parametrize(
    ("sizes", "processors", "jobs"),
    [
        ([], 8, 1),
        ([40_000] * 3, 8, 1),  # as in a hook
        ([40_000] * 15, 8, 1),
        ([40_000] * 40, 8, 3),
        ([40_000] * 400, 8, 8),
        ([500 << 20] * 3, 8, 4),
        ([None] * 3, 8, 3),  # each waits for its store
        ([None] * 3, 2, 2),
    ],
)
def test_a_process_is_started_for_those_who_have_enough_to_do(
    sizes: list[int | None], processors: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(processors), raising=False)
    assert pool.default_jobs(sizes, runs_models=False) == jobs


def test_so_many_processes_run_models_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for memory, jobs in ((None, 3), (9 << 30, 2), (1 << 30, 1)):
        monkeypatch.setattr(
            "bnfold.supervision.limits.running_memory", lambda memory=memory: memory
        )
        assert pool.default_jobs([40_000] * 3, runs_models=True) == jobs


def test_links_of_an_index_lead_to_its_pages_whatever_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "MOST_TOGETHER", 1)
    Path("models").mkdir()
    for number in range(2):
        model(Path(f"models/{number:02}.keras"), "good")
    run("models", "--output", "a b#1?.html")
    assert 'href="a%20b%231%3F_pages/00001.html"' in Path("a b#1?.html").read_text()
    assert Path("a b#1?_pages/00001.html").exists()


def test_each_failure_names_its_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "perform", lambda _: pool.lost("it was ended"))
    found = lines(run(models, "--format", "jsonl").stdout)
    assert [one["error"] for one in found] == [f"{one['path']}: it was ended" for one in found]


@pytest.mark.parametrize(("options", "is_hashed"), [([], False), (["--resume", "rows"], True)])
def test_models_are_hashed_only_where_rows_are_kept(
    models: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], is_hashed: bool
) -> None:
    found = []
    sha256 = unchanging.sha256
    monkeypatch.setattr(unchanging, "sha256", lambda path: found.append(path) or sha256(path))
    run(models, *options)
    assert bool(found) == is_hashed


# --- what failed ---


@pytest.mark.parametrize("how", [["--format", "json"], ["--format", "jsonl"], ["--full"], ["-q"]])
@pytest.mark.parametrize("command", ["inspect", "fold"])
def test_who_does_not_see_a_report_is_told_what_failed(command: str, how: list[str]) -> None:
    Path("models").mkdir()
    model(Path("models/a.keras"), "good")
    Path("models/cut.keras").write_bytes(BROKEN)
    extra = [] if command == "inspect" else ["--out-dir", "out", "--no-verify"]
    result = run("models", *extra, *how, command=command)
    assert result.exit_code == 2
    said = result.stderr.count("models/cut.keras: ")
    assert said == (command == "inspect" or how != ["-q"])  # of a table, folds say it there alone
    filed = run(
        "models", *extra, "--force" if extra else "-q", "--output", "r.txt", command=command
    )
    assert filed.stderr.count("models/cut.keras: ") == 1


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("fold", ["--out-dir", "out"], "cannot verify: onnx"),
        ("verify", ["out"], "cannot verify: onnx"),
        ("export", ["--out-dir", "out", "--to", "onnx", "--to", "tflite"], "cannot export: onnx"),
        ("prepare", ["--out-dir", "out"], "cannot prepare: onnx"),
        ("inspect", ["--data", "x.npy"], "cannot run models: onnx"),
    ],
)
def test_what_is_not_installed_is_said_once_of_many_models(
    command: str, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("models").mkdir()
    for name in ("a", "b"):
        model(Path(f"models/{name}.keras"), "good")
    Path("out").mkdir()
    np.save("x.npy", np.zeros((1, 4)))
    monkeypatch.setattr(requirements, "lacking", lambda _: "onnx is not installed")
    result = run("models", *arguments, command=command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"bnfold: {says} is not installed")
    assert len(result.stderr.splitlines()) == 1
