"""The boundaries between the packages, read from their imports, and what a command may load."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
from places import FIXTURES, ROOT
from tiers import imports_keras, missing, starts_processes

PACKAGE = ROOT / "bnfold"
TESTS = ROOT / "tests"
FIXTURE = FIXTURES / "digits_cnn_keras315.keras"

FRAMEWORKS = {
    *("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai_edge_litert"),
}

BELOW = {
    "errors": set(),
    "version": set(),
    "serialize": {"model"},
    "supervision": {"errors"},
    "model": {"supervision", "errors"},
    "folding": {"model", "errors"},
    "running": {"model", "supervision", "errors"},
    "fleet": {"supervision", "errors", "serialize", "version"},
    "audit": {"folding", "model", "errors", "serialize"},
    "verification": {"running", "model", "supervision", "errors", "serialize"},
    "observation": {"running", "model", "supervision", "errors", "serialize"},
}
"""Which rooms each room may import, beside itself. A judge does not use the accused's arithmetic:
`verification` and `observation` know nothing of `folding`. What stands above these may import all
that is not above itself, as `ABOVE` has it."""
ABOVE = ("jobs", "reports", "api", "cli")
ALLOWED = BELOW | {own: {*BELOW, *ABOVE[: ABOVE.index(own)]} for own in ABOVE}


MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules that a file imports anywhere, except for type checking only."""
    return _imported(filter(_runs, parsed(path).body))


@cache
def named(path: Path) -> frozenset[str]:
    """The modules that a file imports, also for type checking only."""
    return _imported(parsed(path).body)


def _imported(statements: Iterable[ast.stmt]) -> frozenset[str]:
    found: set[str] = set()
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                files = {name for name in whole if is_module(name)}
                found |= files if files == whole else {*files, node.module}
    return frozenset(found)


def _runs(node: ast.stmt) -> bool:
    return not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")


@cache
def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def faults(
    find: Callable[[Path], Iterable[str]], paths: Iterable[Path] = MODULES
) -> dict[str, list[str]]:
    """What is wrong with each file, of those in which `find` finds anything."""
    found = {str(path.relative_to(ROOT)): sorted(find(path)) for path in paths}
    return {path: wrong for path, wrong in found.items() if wrong}


def room(name: str) -> str:
    """The room that a module is in: `bnfold.model.graph` is in `model`."""
    return name.split(".")[1]


def test_imports_point_one_way() -> None:
    def uphill(path: Path) -> set[str]:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own not in ALLOWED:
            return set()
        found = {room(name) for name in imported(path) if name.startswith("bnfold.")}
        return found - {own} - ALLOWED[own]

    assert faults(uphill) == {}


def test_no_file_imports_itself_in_a_circle() -> None:
    """A circle of types makes a reader go round, too."""
    names = {dotted(path): path for path in MODULES}
    left = {name: named(path) & names.keys() - {name} for name, path in names.items()}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"in a circle: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_only_one_room_imports_frameworks() -> None:
    others = [path for path in MODULES if path.parent != PACKAGE / "running"]
    assert faults(lambda path: {n.split(".")[0] for n in imported(path)} & FRAMEWORKS, others) == {}


NOT_OF_KERAS = {"_asdict", "_fields", "_replace", "_exit", "_rng", "_run_exitfuncs"} | {
    *("_FunctionConverterDataInEager", "_replace_variables_by_constants"),
}
"""Names with an underscore that are public (of named tuples, of `os`), TensorFlow's or Python's."""


def test_one_file_names_what_is_private_to_keras() -> None:
    """Another version of Keras may call it otherwise; then that file is changed, and no other."""
    others = [path for path in MODULES if path != PACKAGE / "running" / "keras_graph.py"]
    assert faults(lambda path: private(parsed(path)) - NOT_OF_KERAS, others) == {}


def private(tree: ast.Module) -> set[str]:
    """The attributes with an underscore that a file asks of objects not of its own classes."""
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    asked |= {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr"}
        if isinstance(node.args[1], ast.Constant)
    }
    own = {
        inner.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in {"self", "cls"}
    }
    own |= {
        inner.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
    }
    hidden = {name for name in asked if name.startswith("_") and not name.endswith("__")}
    return hidden - own


SENT = {"Moments", "Observed", "Plan", "Recalibration"}
"""Values that another process or a report gets by the names of their fields."""


def test_a_value_that_needs_no_dataclass_is_a_named_tuple() -> None:
    """Each frozen dataclass is compiled at every start, which takes as long as reading a layer.

    What such a class may have that a named tuple cannot: bases, attributes that are computed once,
    fields that do not count in comparisons, as arrays cannot, or that are called like methods of
    tuples.
    """

    def needless(path: Path) -> list[str]:
        classes = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef))
        return [one.name for one in classes if one.name not in SENT and is_plain(one)]

    def is_plain(node: ast.ClassDef) -> bool:
        words = " ".join(map(ast.unparse, node.decorator_list))
        text = ast.unparse(node)
        needs = ("cached_property", "field(", "count: ", "index: ")
        is_compared = "frozen=True" in words and "eq=False" not in words
        return is_compared and not node.bases and not any(one in text for one in needs)

    paths = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in {"model", "folding"}]
    assert faults(needless, paths) == {}


def loaded_by(*commands: list[str], folder: Path) -> list[set[str]]:
    """What a process has imported after each of some commands, one after the other in a folder.

    What numpy imports by itself does not count; before 2.0 that is `numpy.random` too.
    """
    script = (
        "import json, sys\n"
        "import numpy\n"
        "before = set(sys.modules)\n"
        "from bnfold.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: main(words)\n"
        "    except SystemExit as error: assert not error.code, words\n"
        "    print('LOADED', *sys.modules.keys() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return [set(names) for first, *names in filter(None, lines) if first == "LOADED"]


def test_a_command_that_runs_no_model_loads_no_framework(tmp_path: Path) -> None:
    commands = [
        ["--help"],
        ["inspect", str(FIXTURE)],
        ["fold", str(FIXTURE), "out.keras", "--no-verify"],
        ["rules"],
        ["rule", "BN103"],
    ]
    found = loaded_by(*commands, folder=tmp_path)
    loaded = zip(commands, found, strict=True)
    assert [(words, names & FRAMEWORKS) for words, names in loaded if names & FRAMEWORKS] == []
    # What reads models takes twice as long to import as all that help and usage errors need.
    assert found[0] & {"h5py", "bnfold.model.container.guard", "bnfold.jobs.staging"} == set()


NEEDLESS = {
    *("difflib", "h5py", "hashlib", "rich", "secrets", "tempfile", "tomllib", "xml", "jinja2"),
    *(
        "bnfold.verification",
        "bnfold.model.container.legacy",
        "bnfold.reports.html",
        "numpy.random",
        "numpy.ma",
        "importlib.metadata",
    ),
    *(
        f"bnfold.running.{one}"
        for one in ("options", "requirements", "safety", "samples", "session")
    ),
    *(f"bnfold.reports.formats.{one}" for one in ("json", "sarif", "github", "junit", "markdown")),
}
"""What an inspection needs only for odd files, a proof, a file of settings or another format."""


def test_inspect_loads_nothing_that_was_not_asked_for(tmp_path: Path) -> None:
    """What is not needed takes a noticeable part of the time that an inspection takes."""
    (found,) = loaded_by(["inspect", str(FIXTURE), "--fail-on", "never"], folder=tmp_path)
    assert found & NEEDLESS == set()


def test_a_fold_that_verifies_nothing_loads_nothing_for_it(tmp_path: Path) -> None:
    words = ["fold", str(FIXTURE), "out.keras", "--no-verify"]
    (found,) = loaded_by(words, folder=tmp_path)
    # What writes weights, the digest of the source, what a result is, and what checks options.
    used = {"h5py", "hashlib", "bnfold.verification", "bnfold.running.options"}
    assert found & {*NEEDLESS, "bnfold.verification.verify", "bnfold.jobs.verify"} <= used
    assert {name for name in found if name.startswith("bnfold.verification.")} <= {
        "bnfold.verification.result"
    }


def test_a_test_that_starts_a_process_is_told_from_its_code() -> None:
    assert starts_processes(test_inspect_loads_nothing_that_was_not_asked_for)  # by `loaded_by`
    assert not starts_processes(test_imports_point_one_way)


def test_what_another_system_lacks_is_told_from_the_code_of_a_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def linked() -> None:
        FIXTURE.symlink_to(FIXTURE)

    assert missing(linked) == ""
    monkeypatch.setattr(sys, "platform", "win32")
    assert missing(linked) == "symlink_to"
    assert missing(test_imports_point_one_way) == ""


def test_code_in_a_text_does_not_hide_what_a_file_imports(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text('CODE = """\ndef function():\n    pass\n"""\nimport keras\n')
    assert imports_keras(path)


def test_every_test_begins_with_the_same_seed() -> None:
    assert random.random() == random.Random(0).random()


def test_no_test_file_is_imported() -> None:
    """What several tests need stands in tests/builders, so that a test file can change alone."""

    def tests(path: Path) -> list[str]:
        return re.findall(r"^\s*(?:from|import) ((?:test_|conftest)\w*)", path.read_text(), re.M)

    assert faults(tests, TESTS.rglob("*.py")) == {}
