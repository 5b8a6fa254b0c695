"""Which tests run: which of a large family by default, which without Keras and processes."""

import ast
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from inspect import isfunction, ismodule
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest


def thorough(config: pytest.Config) -> bool:
    """Whether slow tests are asked for: `-m slow`, or `-m "slow or not slow"` for all there are."""
    return "slow" in str(config.option.markexpr).replace("not slow", "")


def without_keras(config: pytest.Config) -> bool:
    """Whether tests are asked for that do without TensorFlow: `-m "not keras"`."""
    return "not keras" in str(config.option.markexpr)


def left_out(config: pytest.Config) -> set[str]:
    """The marks of the tests that run only where the expression of `-m` asks for them."""
    marks = set() if thorough(config) else {"slow"}
    if without_keras(config) and "processes" not in str(config.option.markexpr):
        marks.add("processes")
    return marks


FRAMEWORKS = {"keras", "tensorflow", "tf_keras", "tf2onnx", "onnx", "onnxruntime"}
HELPERS = Path(__file__).parent


@cache
def imports_keras(path: Path) -> bool:
    """Whether a file imports TensorFlow or Keras when it is imported, by way of a helper too."""
    names = set(_imported(path))
    inside = (folder / f"{name}.py" for name in names for folder in (path.parent, HELPERS))
    return bool(names & FRAMEWORKS) or any(one.exists() and imports_keras(one) for one in inside)


# To parse the files as a whole takes a second in every worker.
_DEFINITION = re.compile(r"^(?:@|(?:async )?def |class )", re.MULTILINE)


def _imported(path: Path) -> Iterator[str]:
    """The first names of the modules that a file imports before its first function or class."""
    text = path.read_text("utf-8")
    try:
        tree = ast.parse(_DEFINITION.split(text, maxsplit=1)[0])
    except SyntaxError:  # it was in the middle of a text
        tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return
        match node:
            case ast.Import():
                yield from (one.name.partition(".")[0] for one in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case ast.Assign(
                value=ast.Call(
                    func=ast.Attribute(attr="importorskip"),
                    args=[ast.Constant(value=str(module)), *_],
                )
            ):
                yield module.partition(".")[0]


STARTING = {"subprocess", "multiprocessing", "fork", "posix_spawn"}


def starts_processes(test: FunctionType) -> bool:
    """Whether a function names what starts a process, or calls one of the tests' that does."""
    return bool(_all_names(test) & STARTING)


IS_ROOT = os.name == "posix" and os.geteuid() == 0

NOT_ON_WINDOWS = frozenset(
    (
        *("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1"),
        *("AF_UNIX", "chown", "fork", "getuid", "mkfifo", "symlink", "symlink_to", "umask"),
    )
)
ONLY_ON_LINUX = frozenset(("getxattr", "setxattr", "pidfd_open", "prctl"))
"""What the functions of Python are called that other systems do not have, or not for everybody."""


def missing(test: FunctionType) -> str:
    """The functions that a test needs and this system lacks, in words; "" for none."""
    lacking = frozenset() if sys.platform == "linux" else ONLY_ON_LINUX
    if sys.platform == "win32":
        lacking |= NOT_ON_WINDOWS
    return ", ".join(sorted(_all_names(test) & lacking))


@cache
def _all_names(test: FunctionType) -> frozenset[str]:
    """What a function names, and what those of the tests' name that it calls."""
    seen: set[FunctionType] = set()
    found: set[str] = set()
    left = [test]
    while left:
        function = left.pop()
        seen.add(function)
        names = set(_names(function.__code__))
        found |= names
        known = [function.__globals__.get(name) for name in names]
        helpers = [vars(one) for one in known if ismodule(one)]
        known += [helper.get(name) for helper in helpers for name in names]
        left += [one for one in known if isfunction(one) and _is_ours(one) and one not in seen]
    return frozenset(found)


def _names(code: CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, in the functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_ours(function: FunctionType) -> bool:
    return Path(function.__code__.co_filename).is_relative_to(HELPERS.parent)


def thin(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what `few` leaves out of each family: all but n, as far apart as can be."""
    families: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            family = item.path, getattr(item, "originalname", item.name)
            families.setdefault(family, []).append(item)
    for family in families.values():
        mark = family[0].get_closest_marker("few")
        count = 0 if mark is None else mark.args[0]
        kept = {number * len(family) // count for number in range(count)}
        for number, item in enumerate(family):
            if number not in kept and len(family) > 1:
                item.add_marker("slow")


def some(values: Iterable[Any], step: int = 2, first: int = 0) -> list[Any]:
    """The parameters of a test: one in `step` from the `first` on by default, the others slow."""
    every = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*value, marks=[] if number % step == first else [pytest.mark.slow])
        for number, value in enumerate(every)
    ]


def some_of_each(names: Iterable[str], step: int = 3) -> list[Any]:
    """Likewise, and the first name of each kind: names of one kind are the same up to a hyphen."""
    names = list(names)
    first = {name.partition("-")[0]: name for name in reversed(names)}.values()
    return [
        pytest.param(name, marks=[] if name in first or not number % step else [pytest.mark.slow])
        for number, name in enumerate(names)
    ]


def by_turns(values: Sequence[Any]) -> Sequence[Any]:
    """All values in the slow tier; by default one, which the name of the running test chooses."""
    if EVERYTHING:
        return values
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0].rpartition("::")[2]
    return [values[zlib.crc32(test.encode()) % len(values)]]


EVERYTHING = False
"""Whether this run is thorough, which `conftest` knows."""
