"""Opening model files to run them: refuse what must not be loaded, start TensorFlow, load.

In this order, because TensorFlow takes many seconds: what can be seen to be wrong in the files, in
the modules that the user names and in the user's data is said before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bnfold.model.container.printing import printable
from bnfold.running import data as user_data
from bnfold.running import libraries, loading, safety, samples
from bnfold.running.data import Given
from bnfold.running.loading import LoadedModel
from bnfold.running.options import Loading, Samples
from bnfold.running.safety import FileFacts
from bnfold.running.samples import InputSpec
from bnfold.supervision import link

Report = Callable[[str], None]
"""Is told the name of each stage."""


@dataclass(frozen=True)
class Opening:
    """Model files of which nothing is known that speaks against loading them.

    Attributes:
        files: what is known of each, the original first.
        loading: how they are loaded.
        data: the user's samples, read; None where there are none.
    """

    files: tuple[FileFacts, ...]
    loading: Loading
    data: Given | None = None

    def beside(self, path: Path) -> Opening:
        """The same with one more file. Raises UnreadableModelError and UnsafeModelError."""
        return replace(self, files=(*self.files, _facts(path, self.loading)))

    @property
    def _names(self) -> dict[Path, str]:
        return {facts.path: printable(str(facts.path)) for facts in self.files}

    def start(self, report: Report, threads: int | None = None) -> None:
        """Start TensorFlow, with so many threads. Raises VerificationImpossibleError."""
        link.running(self._names)
        if not libraries.is_loaded():
            report("loading TensorFlow")
            link.starting()
        libraries.start(threads, for_models_alone=not self.loading.imports)

    def load(self, report: Report) -> list[LoadedModel]:
        """Load all files by the same library.

        Raises what `loading.load_all` raises: CannotRunError where it loads the original and not
        another one.
        """
        report("loading the models" if len(self.files) > 1 else "loading the model")
        link.loading(self._names)
        return loading.load_all(self.files, self.loading)


def look(paths: Sequence[Path], how: Loading, wanted: Samples | None) -> Opening:
    """Refuse what can be seen to be wrong before TensorFlow is started.

    Where a file does not say what goes into its model, nothing is refused for that: the loaded
    model is asked again. `wanted` is None where the caller looks for samples by itself.

    Raises UnreadableModelError and UnsafeModelError, and BnfoldError for a module that is not
    there, for data that are unreadable or do not fit the inputs of the first model, and for no data
    where these are texts, which cannot be drawn.
    """
    files = tuple(_facts(path, how) for path in paths)
    for name in how.imports:
        libraries.find_module(name)
    return Opening(files, how, None if wanted is None else _data(wanted, files[0].specs))


def _data(wanted: Samples, specs: Sequence[InputSpec]) -> Given | None:
    if wanted.data is None:
        samples.refuse_text(specs)
        return None
    given = user_data.read(wanted.data)
    if specs:
        user_data.refuse_few(user_data.open_data(given, specs))
    return given


def open_models(opening: Opening, report: Report) -> list[LoadedModel]:
    """Start TensorFlow and load; raises what these raise."""
    opening.start(report)
    return opening.load(report)


def _facts(path: Path, how: Loading) -> FileFacts:
    facts = safety.read_facts(path)
    if not how.trust:
        safety.refuse_code(facts)
    return facts
