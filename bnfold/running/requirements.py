"""The libraries that bnfold needs: which are installed, of which version, and what to install.

`pip install bnfold` brings those that read, judge and fold files. Those that run models come with
extras, or are the user's own: the module `tensorflow` may be that of tensorflow, tensorflow-cpu,
tf-nightly or others. So modules are asked for, and then the distributions that they belong to.
Nothing is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata

from bnfold.errors import VerificationImpossibleError
from bnfold.running.advisories import numbers
from bnfold.running.installed import loaded_version, origin


@dataclass(frozen=True)
class Library:
    """A library that bnfold imports.

    Attributes:
        module: its name in Python.
        lowest: the lowest version that bnfold works with.
        extra: the extra of bnfold that installs it; empty for what is always installed.
        part: the module in it that bnfold imports, where that is not the whole.
        use: what it is for, where not all that runs models needs it.
    """

    module: str
    lowest: str
    extra: str = ""
    part: str = ""
    use: str = ""

    @property
    def distribution(self) -> str:
        """The name under which the extra installs it."""
        return self.module.replace("_", "-")


LIBRARIES = {
    one.module: one
    for one in (
        Library("click", "8.2"),
        Library("h5py", "3.11"),
        Library("jinja2", "3.1.6"),
        Library("ml_dtypes", "0.5.1"),
        Library("numpy", "1.26"),
        Library("rich", "13.7"),
        Library("zlib_ng", "0.5.1", part="zlib_ng.zlib_ng"),
        Library("tensorflow", "2.19", "verify"),
        Library("keras", "3.6", "verify"),
        Library("tf2onnx", "1.17", "verify", "tf2onnx.convert"),
        Library("onnx", "1.21", "verify"),
        Library("onnxruntime", "1.19", "verify"),
        Library("tf_keras", "2.19", "keras2", use="files of Keras 2 that Keras 3 cannot load"),
        Library(
            *("ai_edge_litert", "1.2", "litert", "ai_edge_litert.interpreter"),
            use="running LiteRT files without TensorFlow's interpreter",
        ),
        Library("fsspec", "2024.6", "remote", use="models in stores"),
        Library("aiohttp", "3.9", "remote", use="models at https://"),
        Library("s3fs", "2024.6", "remote", use="models at s3://"),
        Library("distributed", "2024.8", "dask", use="--engine dask"),
    )
}
"""All of them, by module."""


@dataclass(frozen=True)
class Installed:
    """What is there of a library.

    Attributes:
        library: which it is.
        is_there: whether its module can be found.
        distribution: the name of the package that the module belongs to; None where none says so.
        version: of the module if it is imported, else of that package; None where it is not known.
        error: why it cannot be imported, in one line; None where it can, or nobody tried.
    """

    library: Library
    is_there: bool
    distribution: str | None = None
    version: str | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """That of the package, which the user knows it by."""
        return self.distribution or self.library.distribution

    @property
    def is_old(self) -> bool:
        """Whether it is known to be older than what bnfold works with."""
        found, lowest = numbers(self.version or ""), numbers(self.library.lowest)
        return found is not None and lowest is not None and found < lowest

    @property
    def will_do(self) -> bool:
        """Whether it is there, and nothing that is known of it speaks against it."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is wrong with it, in a few words; None if nothing is."""
        if not self.is_there:
            return "is not installed"
        if self.error is not None:
            return f"cannot be imported ({self.error})"
        return f"{self.version} is older than {self.library.lowest}" if self.is_old else None


def look(module: str) -> Installed:
    """What is there of one of `LIBRARIES`."""
    library = LIBRARIES[module]
    if origin(module) is None:
        return Installed(library, is_there=False)
    distribution, version = _distribution(library), loaded_version(module)
    if version is None and distribution is not None:
        version = metadata.version(distribution)
    return Installed(library, True, distribution, version)


def _distribution(library: Library) -> str | None:
    try:
        metadata.version(library.distribution)
    except metadata.PackageNotFoundError:
        return next(iter(_owners().get(library.module, ())), None)
    return library.distribution


@cache
def _owners() -> dict[str, list[str]]:
    """The distributions by module; reads what all of them have, which takes half a second."""
    return dict(metadata.packages_distributions())


@dataclass(frozen=True)
class Needs:
    """The libraries of a command.

    Attributes:
        what: what it cannot do without them, after "cannot".
        needed: the modules without which it does nothing.
        used: those without which it does less, and says so.
        instead: what can be done without all of them.
    """

    what: str
    needed: tuple[str, ...]
    used: tuple[str, ...] = ()
    instead: str = ""

    @property
    def is_light(self) -> bool:
        """Whether it needs nothing but what is always installed."""
        return not any(LIBRARIES[module].extra for module in self.needed)


CORE = tuple(name for name, one in LIBRARIES.items() if not one.extra)
KERAS = ("tensorflow", "keras")
ONNX = ("tf2onnx", "onnx", "onnxruntime")
COMMANDS = {
    "inspect": Needs("read models", CORE),
    "rules": Needs("list rules", CORE),
    "fold --no-verify": Needs("fold", CORE),
    "inspect --data": Needs("run models", KERAS),
    "fold": Needs("verify", KERAS, ONNX, "use --no-verify"),
    "verify": Needs("verify", KERAS, ONNX),
    "verify onnx": Needs("verify an ONNX file", (*KERAS, "onnx", "onnxruntime")),
    "verify tflite": Needs("verify a LiteRT file", KERAS),
    "verify saved_model": Needs("verify a SavedModel", KERAS),
    "export": Needs("export", (*KERAS, *ONNX)),
    "export to LiteRT": Needs("export", KERAS, ("ai_edge_litert",)),
    "export to SavedModel": Needs("export", KERAS),
    "prepare": Needs("prepare", KERAS, ONNX),
    "recalibrate": Needs("run models", KERAS),
    "bench": Needs("run models", KERAS, ONNX),
    "models at https://": Needs("read them", ("fsspec", "aiohttp")),
    "models at s3://": Needs("read them", ("fsspec", "s3fs")),
    "--engine dask": Needs("use a cluster", ("distributed",)),
}
"""What each command needs, beside what all of them do."""


def require(command: str, *, everything: bool = False) -> None:
    """See that what a command of `COMMANDS` needs is installed, without importing it.

    With `everything` also what it could do without. Raises VerificationImpossibleError with one
    line on what is missing or too old, and how to install it.
    """
    needs = COMMANDS[command]
    problem = lacking(map(look, (*needs.needed, *(needs.used if everything else ()))))
    if problem is not None:
        instead = f", or {needs.instead}" if needs.instead else ""
        raise VerificationImpossibleError(f"cannot {needs.what}: {problem}{instead}")


def require_version(module: str, version: str) -> None:
    """The same for a library that was imported, and may be of another version than its package."""
    problem = lacking([replace(look(module), version=version)])
    if problem is not None:
        raise VerificationImpossibleError(f"cannot run models: {problem}")


def lacking(libraries: Iterable[Installed]) -> str | None:
    """What will not do of these libraries, and what to install; None if nothing is wrong."""
    wrong = [found for found in libraries if not found.will_do]
    if not wrong:
        return None
    absent = [found.library.module for found in wrong if not found.is_there]
    said = [f"{found.name} {found.problem}" for found in wrong if found.is_there]
    if absent:
        said.insert(0, f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} not installed")
    to_install = [found for found in wrong if found.error is None]
    return _listed(said) + (f": {install(to_install)}" if to_install else "")


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def install(wrong: Sequence[Installed]) -> str:
    """The command that installs what is missing or too old.

    An extra of bnfold would install tensorflow over the files of tensorflow-cpu. So where a module
    belongs to a package of another name, exactly what is wrong is installed.
    """
    extras = {found.library.extra for found in wrong}
    mates = [look(name) for name, one in LIBRARIES.items() if one.extra in {*extras, "verify"}]
    others = [one for one in mates if one.is_there and one.distribution != one.library.distribution]
    if "" not in extras and not others:
        return f'pip install "bnfold[{",".join(sorted(extras))}]"'
    names = [f'"{found.name}>={found.library.lowest}"' for found in wrong]
    return f"pip install {' '.join(names)}"
