"""What the installed Keras and tf_keras have under each part that configs name.

    python tests/builders/keras_parts.py

prints it with the versions, in the form of `bnfold/running/keras_names.py`, less what is refused.
"""

import importlib
import importlib.metadata
import inspect
import pkgutil
import textwrap

from bnfold.running.keras_names import FUNCTIONS, KNOWN, REFUSED

NOT_CONFIGS = {"deserialize", "get", "serialize"}
FUNCTION_PARTS = ("activations", "initializers", "losses", "metrics", "regularizers")


def modules(library: str, part: str) -> list[object]:
    """The public module of a part, and those below it of which configs speak."""
    names = [part, f"{part}.legacy", f"{part}.schedules"] if part == "optimizers" else [part]
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(f"{library}.{name}" if name else library))
        except ImportError:
            continue
    return found


def classes(library: str, part: str) -> set[str]:
    """The names of the classes of a part; for "ops", of all operations, which are not exported."""
    if part == "ops":
        return operations() if library == "keras" else set()
    return {
        name
        for module in modules(library, part)
        for name, value in vars(module).items()
        if inspect.isclass(value)
    }


def operations() -> set[str]:
    """The names of the operations of Keras 3."""
    from keras.src import ops
    from keras.src.ops.operation import Operation

    names = {found.name for found in pkgutil.walk_packages(ops.__path__, "keras.src.ops.")}
    return {
        name
        for module in (importlib.import_module(name) for name in names if "test" not in name)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Operation)
    }


def functions(library: str) -> set[str]:
    """The names of the functions that configs name as objects."""
    return {
        name
        for part in FUNCTION_PARTS
        for module in modules(library, part)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and name not in NOT_CONFIGS
    }


def show(title: str, found: set[str], known: frozenset[str]) -> None:
    text = " ".join(sorted(found - REFUSED, key=lambda name: (name.lower(), name)))
    new = " ".join(sorted(found - REFUSED - known)) or "nothing"
    print(f"# {title}; new: {new}", textwrap.indent(textwrap.fill(text, 96), "    "), sep="\n")


def main() -> None:
    for library in ("keras", "tf_keras"):
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
        for part, known in KNOWN.items():
            found = classes(library, part)
            if found and part:
                show(f"{library} {version}: {part}", found, known)
        show(f"{library} {version}: functions", functions(library), FUNCTIONS)


if __name__ == "__main__":
    main()
