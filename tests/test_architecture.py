"""The boundaries between the packages, read from their imports, and what a command may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bnfold"
FIXTURE = Path(__file__).parent.parent / "fixtures" / "digits_cnn_keras315.keras"

FRAMEWORKS = {
    *("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai_edge_litert"),
}

ALLOWED = {
    "errors": set(),
    "model": {"errors", "model"},
    "folding": {"errors", "model", "folding"},
    "moments": set(),
    "options": {"errors"},
    "process": set(),
    "audit": {"errors", "model", "folding", "moments", "audit"},
    "verification": {"errors", "model", "moments", "options", "process", "verification"},
}
"""Which parts of bnfold each part may import."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, except for type checking only."""
    found: set[str] = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "bnfold":
                found |= {f"bnfold.{alias.name}" for alias in node.names}
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part not in ALLOWED:
        return
    own = {name.split(".")[1] for name in imported(path) if name.startswith("bnfold.")}
    assert own <= ALLOWED[part]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_runtime_imports_frameworks(path: Path) -> None:
    if path.parent == PACKAGE / "verification" / "runtime":
        return
    assert not {name.split(".")[0] for name in imported(path)} & FRAMEWORKS


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
        "print([m for m in sys.modules if m.startswith(('bnfold.verification', 'numpy.random'))])\n"
        "print(sorted(set(sys.modules) & {'difflib', 'hashlib', 'secrets', 'tempfile'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]
