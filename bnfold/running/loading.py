"""Loading model files, and seeing that what is loaded is the model that is in the file."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, UnreadableModelError, VerificationImpossibleError
from bnfold.model import declared
from bnfold.model.container import hdf5
from bnfold.model.container.printing import printable
from bnfold.running import keras_graph, process, registered, safety
from bnfold.running.libraries import CannotRunError, import_module, library, one_line, quiet
from bnfold.running.options import Loading
from bnfold.supervision import link

_UNKNOWN = re.compile(r"(?:Could not locate class|Unknown layer:) '([^']*)'")
"""What Keras says of a class that nobody registered, at length and with advice for programs."""


_LIBRARIES = {"keras", "tf_keras", "tensorflow"}


@dataclass
class LoadedModel:
    """A model in memory; `shown` is the Keras model that runs, from flat inputs to some tensors.

    `notes` are sentences on what had to be done to load it.
    """

    path: Path
    library: str
    model: Any
    trust: bool
    custom_objects: dict[str, Any] = field(default_factory=dict)
    shown: Any = None
    notes: tuple[str, ...] = ()

    @property
    def keras(self) -> Any:
        """The library that loaded the model: keras or tf_keras."""
        return importlib.import_module(self.library)

    @property
    def label(self) -> str:
        """The file's name for messages."""
        return self.path.name


def load_all(files: Sequence[safety.FileFacts], how: Loading) -> list[LoadedModel]:
    """Load files by the same library: Keras 3, or tf_keras for what only Keras 2 reads.

    Raises CannotRunError when it loads the first of them, the original, and not another.
    """
    modules = [part for one in how.imports for part in _parts(import_module(one))]
    failures: list[BnfoldError] = []
    for name in ("keras", "tf_keras"):
        if name == "tf_keras" and not _may_be_keras_2(files[0]):
            break
        try:
            custom = {**_custom_objects(name, files, modules, how), **how.classes}
            first = _load(files[0], name, custom, trust=how.trust)
        except BnfoldError as error:
            failures.append(error)
            continue
        try:
            return [first, *(_load(other, name, custom, trust=how.trust) for other in files[1:])]
        except UnreadableModelError as error:
            raise CannotRunError(str(error)) from error
    # tf_keras, asked last, knows Keras 2 files better than Keras 3 does.
    raise failures[-1]


def _may_be_keras_2(facts: safety.FileFacts) -> bool:
    return not facts.keras_version.startswith("3.")


def _custom_objects(
    name: str, files: Sequence[safety.FileFacts], modules: Sequence[Any], how: Loading
) -> dict[str, Any]:
    """Find what the user has defined for the names in the files; refuse what is missing."""
    keras = library(name)
    found: dict[str, Any] = {}
    for facts in files:
        missing = []
        if facts.kind == "h5":  # which names no modules: what the user names goes before Keras' own
            named = safety.texts(facts)
            found |= {one: own for one, own in _own(modules).items() if one in named}
        for custom in safety.custom_entries(facts):
            plain = custom.name.rsplit(">", 1)[-1]
            every = (vars(module)[plain] for module in modules if plain in vars(module))
            here = [one for one in every if how.trust or custom.may_be(one)]
            if here:
                found[plain] = found[custom.name] = here[0]
                continue
            one = registered.find(keras, custom.name, how.registered, facts.path)
            if custom.may_be(one):
                found[custom.name] = one
            else:
                missing.append(custom)
        if not how.trust:
            safety.refuse_unregistered(facts, missing)
    return found


def _own(modules: Sequence[Any]) -> dict[str, Any]:
    """The classes and functions of some modules that are not Keras', by name; the first counts."""
    return {
        name: value
        for module in reversed(modules)
        for name, value in vars(module).items()
        if inspect.isclass(value) or inspect.isfunction(value)
        if value.__module__.partition(".")[0] not in _LIBRARIES
    }


def _parts(module: Any) -> list[Any]:
    """A module and what it has imported of its own package, itself first."""
    inside = f"{module.__name__}."
    loaded = list(sys.modules.items())
    return [module, *(part for name, part in loaded if part and name.startswith(inside))]


def _load(
    facts: safety.FileFacts, name: str, custom: dict[str, Any], *, trust: bool
) -> LoadedModel:
    keras = library(name)
    try:
        is_kerass_own = not custom and not [*safety.custom_entries(facts)]
        is_read_whole = is_kerass_own and name == "keras" and process.is_own()
        nothing = _drawing_nothing(keras) if is_read_whole else contextlib.nullcontext()
        with quiet(), nothing, _as_understood(facts, name) as (path, notes):
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
    _refuse_another_model(facts, name, model)
    return LoadedModel(facts.path, name, model, trust, custom, notes=notes)


@contextlib.contextmanager
def _drawing_nothing(keras: Any) -> Iterator[None]:
    """While this lasts, weights begin as zeros where Keras would draw them.

    Keras' own layers get all their weights from the file, or it is not loaded; to draw millions of
    numbers first takes a fifth of the time. Not for layers of the user's, which may keep what they
    draw, nor in a process where others make layers too.
    """

    def zeros(_: Any, shape: Any, dtype: Any = None, **__: Any) -> Any:
        return keras.ops.zeros(shape, dtype=dtype)

    drawing = [getattr(keras.initializers, name) for name in _DRAWING]
    before = [one.__call__ for one in drawing]
    for one in drawing:
        one.__call__ = zeros
    try:
        yield
    finally:
        for one, own in zip(drawing, before, strict=True):
            one.__call__ = own


_DRAWING = ("RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Orthogonal")
"""Keras' initializers that draw; the others that do are made of these."""


def _refuse_another_model(facts: safety.FileFacts, name: str, model: Any) -> None:
    """Raise UnreadableModelError if what was loaded takes or gives something else than the file."""
    for kind, every, tensors_of in (
        ("input", facts.inputs, model.inputs),
        ("output", facts.outputs, model.outputs),
    ):
        if every and len(every) != len(tensors_of):
            raise UnreadableModelError(
                f"{facts.path}: {name} loads another model than the file describes: one of"
                f" {len(tensors_of)} {kind}s, not of {len(every)}"
            )
        for number, (said, tensor) in enumerate(zip(every, tensors_of, strict=False)):
            shape, dtype = tuple(tensor.shape), keras_graph.dtype_name(tensor)
            if said.differs(shape, dtype):
                wanted = _shown(said.shape, said.dtype)
                raise UnreadableModelError(
                    f"{facts.path}: {name} loads another model than the file describes: {kind}"
                    f" {number} is {_shown(shape, dtype)}, not {wanted}"
                )


def _shown(shape: tuple[int | None, ...] | None, dtype: str | None) -> str:
    sizes = () if shape is None else shape
    listed = "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"
    return " ".join(part for part in ("" if shape is None else listed, dtype) if part)


@contextlib.contextmanager
def _as_understood(
    facts: safety.FileFacts, library_name: str
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A file that the library reads as it is meant, and sentences on what is different in it.

    Keras goes by the suffix of the name: the file is linked under one that tells the truth. Where
    Keras 3 would misread the config of a legacy file, a copy has another one.
    """
    entry, firsts = facts.config, tuple[str, ...]()
    if facts.kind == "h5" and library_name == "keras":
        entry, firsts = declared.with_input_layers(facts.config)
    suffixes = {"keras": (".keras",), "h5": (".h5", ".hdf5")}.get(facts.kind, ())
    is_well_named = not suffixes or facts.path.name.endswith(suffixes)
    if is_well_named and not firsts:
        yield facts.path, ()
        return
    with link.temporary_folder() as folder:
        path = folder / f"model{suffixes[0]}"
        if firsts:
            shutil.copyfile(facts.path, path)
            hdf5.replace_text(path, "model_config", json.dumps(entry))
            yield path, (_input_layers_note(firsts),)
            return
        try:
            path.symlink_to(facts.path.resolve())
        except OSError:  # file systems and accounts without links
            shutil.copyfile(facts.path, path)
        yield path, ()


def _input_layers_note(firsts: Sequence[str]) -> str:
    names = ", ".join(f"'{printable(name)}'" for name in firsts)
    return (
        f"loaded with an InputLayer before {names}: as in Keras 2.3 and older, the file has none"
        " there, and Keras 3 would add an axis to the input"
    )
