"""Loading the two files of a verification."""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, UnreadableModelError, VerificationImpossibleError
from bnfold.verification import safety
from bnfold.verification.runtime.libraries import (
    CannotRunError,
    import_module,
    library,
    one_line,
    quiet,
)

_UNKNOWN = re.compile(r"(?:Could not locate class|Unknown layer:) '([^']*)'")
"""What Keras says of a class that nobody registered, at length and with advice for programs."""


@dataclass
class LoadedModel:
    """A model in memory; `runner` maps flat inputs to flat, tapped outputs."""

    path: Path
    library: str
    model: Any
    trust: bool
    custom_objects: dict[str, Any] = field(default_factory=dict)
    runner: Any = None

    @property
    def keras(self) -> Any:
        """The library that loaded the model: keras or tf_keras."""
        return importlib.import_module(self.library)

    @property
    def label(self) -> str:
        """The file's name for messages."""
        return self.path.name


def load_pair(
    original: safety.FileFacts,
    folded: safety.FileFacts,
    imports: Sequence[str],
    classes: Mapping[str, Any],
    *,
    trust: bool,
) -> tuple[LoadedModel, LoadedModel]:
    """Load both files by the same library: Keras 3, or tf_keras for what only Keras 2 reads.

    Raises CannotRunError when it loads the original and not the other.
    """
    first, second = load_all((original, folded), imports, classes, trust=trust)
    return first, second


def load_all(
    files: Sequence[safety.FileFacts],
    imports: Sequence[str],
    classes: Mapping[str, Any],
    *,
    trust: bool,
) -> list[LoadedModel]:
    """Load files by the same library, the first of them the original.

    Raises CannotRunError when it loads the original and not another.
    """
    modules = [import_module(one) for one in imports]
    failures: list[BnfoldError] = []
    for name in ("keras", "tf_keras"):
        if name == "tf_keras" and not _may_be_keras_2(files[0]):
            break
        try:
            custom = {**_custom_objects(name, files, modules, trust=trust), **classes}
            first = _load(files[0], name, custom, trust=trust)
        except BnfoldError as error:
            failures.append(error)
            continue
        try:
            return [first, *(_load(other, name, custom, trust=trust) for other in files[1:])]
        except UnreadableModelError as error:
            raise CannotRunError(str(error)) from error
    # tf_keras, asked last, knows Keras 2 files better than Keras 3 does.
    raise failures[-1]


def _may_be_keras_2(facts: safety.FileFacts) -> bool:
    return not facts.keras_version.startswith("3.")


def _custom_objects(
    name: str, files: Sequence[safety.FileFacts], modules: Sequence[Any], *, trust: bool
) -> dict[str, Any]:
    """Find what the user's modules define for the names in the files; refuse what is missing."""
    keras = library(name)
    found: dict[str, Any] = {}
    for facts in files:
        missing = []
        for custom in safety.custom_entries(facts):
            plain = custom.name.rsplit(">", 1)[-1]
            here = [vars(module)[plain] for module in modules if plain in vars(module)]
            if here:
                found[plain] = found[custom.name] = here[0]
            elif keras.saving.get_registered_object(custom.name) is None:
                missing.append(custom)
        if not trust:
            safety.refuse_unregistered(facts, missing)
    return found


def _load(
    facts: safety.FileFacts, name: str, custom: dict[str, Any], *, trust: bool
) -> LoadedModel:
    keras = library(name)
    try:
        with quiet(), _properly_named(facts) as path:
            model = keras.models.load_model(
                str(path), custom_objects=custom, compile=False, safe_mode=not trust
            )
    except Exception as error:
        if unknown := _UNKNOWN.search(str(error)):
            safety.refuse_unregistered(facts, [safety.Custom(unknown[1], "")])
        raise UnreadableModelError(
            f"{facts.path}: {name} cannot load it: {one_line(error)}"
        ) from error
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise VerificationImpossibleError(
            f"{facts.path}: only Functional and Sequential models can be run here,"
            f" not {type(model).__name__}"
        )
    return LoadedModel(facts.path, name, model, trust, custom)


@contextlib.contextmanager
def _properly_named(facts: safety.FileFacts) -> Iterator[Path]:
    """Keras goes by the suffix of the name: link the file under one that tells the truth."""
    suffixes = {"keras": (".keras",), "h5": (".h5", ".hdf5")}.get(facts.kind, ())
    if not suffixes or facts.path.name.endswith(suffixes):
        yield facts.path
        return
    with tempfile.TemporaryDirectory(prefix="bnfold-") as directory:
        link = Path(directory) / f"model{suffixes[0]}"
        try:
            link.symlink_to(facts.path.resolve())
        except OSError:  # file systems and accounts without links
            shutil.copyfile(facts.path, link)
        yield link
