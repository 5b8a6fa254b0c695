"""The boundaries between the packages, read from their imports, and what a command may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import FIXTURES, ROOT

PACKAGE = ROOT / "bnfold"
TESTS = ROOT / "tests"
FIXTURE = FIXTURES / "digits_cnn_keras315.keras"

FRAMEWORKS = {
    *("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai_edge_litert"),
}

BELOW = {
    "errors": set(),
    "version": set(),
    "serialize": set(),
    "supervision": {"errors"},
    "model": {"supervision", "errors"},
    "folding": {"model", "errors"},
    "running": {"model", "supervision", "errors"},
    "audit": {"folding", "model", "errors", "serialize"},
    "verification": {"running", "model", "supervision", "errors", "serialize"},
    "observation": {"running", "model", "supervision", "errors", "serialize"},
}
"""Which rooms each room may import, beside itself. A judge does not use the accused's arithmetic:
`verification` and `observation` know nothing of `folding`. What stands above these may import all
that is not above itself, as `ABOVE` has it."""
ABOVE = ("jobs", "reports", "api", "cli")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, except for type checking only."""
    found: set[str] = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name for name in whole if is_module(name)}
            found |= files if files == whole else {*files, node.module}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


def room(name: str) -> str:
    """The room that a module is in: `bnfold.model.graph` is in `model`."""
    return name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    found = {room(name) for name in imported(path) if name.startswith("bnfold.")} - {own}
    if own in BELOW:
        assert found <= BELOW[own]
    elif own in ABOVE:
        assert found <= {*BELOW, *ABOVE[: ABOVE.index(own)]}


def test_no_file_imports_itself_in_a_circle() -> None:
    names = {dotted(path): path for path in modules()}
    left = {name: imported(path) & names.keys() - {name} for name, path in names.items()}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"in a circle: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_room_imports_frameworks(path: Path) -> None:
    if path.parent == PACKAGE / "running":
        return
    assert not {name.split(".")[0] for name in imported(path)} & FRAMEWORKS


NOT_OF_KERAS = {"_asdict", "_fields", "_exit", "_rng"}
"""Names with an underscore that are public (of named tuples, of `os`), or TensorFlow's."""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_file_names_what_is_private_to_keras(path: Path) -> None:
    """Another version of Keras may call it otherwise; then that file is changed, and no other."""
    if path == PACKAGE / "running" / "keras_graph.py":
        return
    assert not private(ast.parse(path.read_text())) - NOT_OF_KERAS


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


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["inspect", str(FIXTURE)], ["fold", str(FIXTURE), "OUT", "--no-verify"]],
    ids=["help", "inspect", "fold --no-verify"],
)
def test_a_command_that_runs_no_model_loads_no_framework(
    arguments: list[str], tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "out.keras") if word == "OUT" else word for word in arguments]
    script = (
        "import sys\n"
        "from bnfold.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as error: assert error.code in (0, None), error.code\n"
        f"print('LOADED', sorted(set(sys.modules) & {FRAMEWORKS!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_inspect_loads_nothing_that_only_a_proof_needs() -> None:
    """What is not needed takes a noticeable part of the time that an inspection takes."""
    script = (
        "import sys\n"
        "from bnfold.cli import main\n"
        f"try: main(['inspect', {str(FIXTURE)!r}, '--no-config'])\n"
        "except SystemExit as error: assert not error.code\n"
        "needless = ('bnfold.verification', 'bnfold.running.s', 'numpy.random')\n"
        "print([m for m in sys.modules if m.startswith(needless)])\n"
        "print(sorted(set(sys.modules) & {'difflib', 'hashlib', 'secrets', 'tempfile'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_file_is_imported(path: Path) -> None:
    """What several tests need stands in tests/builders, so that a test file can change alone."""
    names = {name for node in ast.walk(ast.parse(path.read_text())) for name in _modules(node)}
    assert not [name for name in names if name.startswith(("test_", "conftest"))]


def _modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [one.name for one in node.names]
        case ast.ImportFrom(module=str(module)):
            return [module]
        case _:
            return []
