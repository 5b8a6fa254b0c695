"""Running a model over data, to see what goes into its BatchNormalization layers.

One batch is in memory at a time, with what the model makes of it. The model runs as `predict` runs
it: in inference mode, where Keras 3 overrides a call's own training=True and Keras 2 does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import BnfoldError
from bnfold.model.container.printing import printable
from bnfold.model.graph import LayerPath
from bnfold.model.moments import Observed
from bnfold.observation.observer import Normalization, Observer, normalizations
from bnfold.running import borrowing, inputs, keras_graph, keras_runner, options, session
from bnfold.running.arrays import Array
from bnfold.running.data import Source, UserData, open_data, refuse_few
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.options import SAFELY, Loading, Samples
from bnfold.supervision import link

_MOST = 128  # samples in a batch: more save hardly any time
_ROOM = 1 << 30  # bytes for what a model makes of a batch
_FEWEST = 2  # samples: of one there is no variance
_SECONDS_BETWEEN = 5.0


@dataclass(frozen=True)
class DataRun:
    """How a model is to be run over data.

    Attributes:
        data: the samples.
        batch: how many of them go in at a time; None for as many as have room.
        loading: how its file is loaded.
        progress: called with the name of each stage.
    """

    data: Source
    batch: int | None = None
    loading: Loading = SAFELY
    progress: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        """Check every value. Raises SettingsError and TypeError."""
        batch = options.optional(options.whole, "batch", self.batch, least=1)
        options.checked(self, batch=batch)

    @property
    def report(self) -> Callable[[str], None]:
        """What to call with the name of each stage."""
        return link.told(self.progress)


@dataclass(frozen=True)
class Running:
    """A loaded model and its data."""

    loaded: LoadedModel
    data: UserData
    size: int

    @property
    def samples(self) -> int:
        """How many go in: not those at the end that fill no batch of a size that is fixed."""
        if self.data.fixed_batch is None:
            return self.data.count
        return self.data.count - self.data.count % self.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many samples each batch has."""
        starts = range(0, self.samples, self.size)
        return tuple(min(self.size, self.samples - start) for start in starts)

    def batch(self, number: int) -> tuple[Array, ...]:
        """One batch. Raises BnfoldError for numbers that are not finite."""
        start = number * self.size
        return self.data.finite(start, min(start + self.size, self.samples))


def start(path: Path, run: DataRun) -> Running:
    """Load a model and open its data.

    Raises UnreadableModelError, UnsafeModelError, VerificationImpossibleError, and BnfoldError for
    data that do not fit.
    """
    opening = session.look([path], run.loading, Samples(run.data))
    (facts,), given = opening.files, opening.data or run.data
    if facts.specs:
        _refuse_useless(open_data(given, facts.specs))
    (loaded,) = session.open_models(opening, run.report)
    data = open_data(given, inputs.input_specs(loaded.model))
    refuse_few(data, _FEWEST)
    return Running(loaded, data, data.fixed_batch or run.batch or _batch_with_room(loaded, data))


def _refuse_useless(data: UserData) -> None:
    """Raise BnfoldError for too few samples, and for numbers that are not finite."""
    refuse_few(data, _FEWEST)
    run = data.count - data.count % (data.fixed_batch or 1)  # the rest fills no batch
    for begin in range(0, run, _MOST):
        data.finite(begin, min(begin + _MOST, run))


def _batch_with_room(loaded: LoadedModel, data: UserData) -> int:
    """A batch size whose values, all together, stay within bounds."""
    pairs = zip(data.arrays, data.specs, strict=True)
    free = (
        size
        for array, spec in pairs
        for size, wanted in zip(array.shape[1:], spec.shape[1:], strict=True)
        if wanted is None
    )
    size = keras_graph.bytes_per_sample(loaded.model, max(free, default=1))
    return max(1, min(_MOST, _ROOM // max(1, size)))


@borrowing.guest()
def observe(path: Path, run: DataRun) -> tuple[dict[LayerPath, Observed], tuple[str, ...]]:
    """The input of each BatchNormalization of a model while it runs over data, and loading notes.

    Layers that the model does not call, or that are inside custom layers, are left out.
    Raises what `start` raises, and BnfoldError when the model cannot run on the data.
    """
    running = start(path, run)
    found = observe_running(running, normalizations(running.loaded), run.report)
    return found, running.loaded.notes


def observe_running(
    running: Running,
    found: Mapping[LayerPath, Normalization],
    report: Callable[[str], None],
    see: Callable[[list[Array]], None] = lambda _: None,
) -> dict[LayerPath, Observed]:
    """What goes into some layers of a loaded model while it runs over its data.

    `see` is called with the outputs for each batch.
    """
    watcher = Observer(found)
    report(f"running {running.samples} samples")
    ticker = Ticker(report, running.samples)
    keras_runner.prepare_alone(running.loaded)
    with watcher.watching(), in_one_line(running.loaded.path):
        for number, size in enumerate(running.sizes):
            see(keras_runner.run(running.loaded, running.batch(number), training=False))
            ticker.advance(size)
    return watcher.observed(running.samples)


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Report in one line that a model cannot run on the data."""
    try:
        yield
    except CannotRunError as error:
        raise BnfoldError(f"{printable(str(path))}: cannot run on the data: {error}") from error


class Ticker:
    """Says every few seconds how far a run over the data is."""

    def __init__(self, report: Callable[[str], None], total: int, doing: str = "") -> None:
        self._report, self._total, self._doing = report, total, doing
        self._done, self._last = 0, time.monotonic()

    def advance(self, samples: int) -> None:
        """Note so many more samples."""
        self._done += samples
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN:
            self._last = now
            self._report(f"{self._doing}{self._done} of {self._total} samples")
