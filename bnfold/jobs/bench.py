"""How long two models take for the same inputs, measured in turn, and what the difference is worth.

A round times both models, each for one call or for as many as fill a fraction of a millisecond;
every other round begins with B, so that neither model gains by its place. Where in memory the
weights of a model come to lie, and how its threads meet those of others, makes it some percent
slower or faster for as long as it runs. So both models are started anew several times, and of each
start k, with the times a and b of its rounds,

    ratio_k = median(a) / median(b)

is one observation of how many times faster B is. The ratio is the median of these; its interval is
that of the sign test, which supposes nothing of how they are distributed: of n observations the
k-th smallest is above the true median with a probability of P(Binomial(n, 1/2) < k).
"""

from __future__ import annotations

import functools
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from bnfold.errors import BnfoldError, SettingsError, UnreadableModelError
from bnfold.jobs.fold import fold_file
from bnfold.model.container.model_file import held
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Where
from bnfold.model.container.store import Copies
from bnfold.running import (
    borrowing,
    inputs,
    keras_runner,
    options,
    requirements,
    samples,
    session,
    timing,
)
from bnfold.running.arrays import Array
from bnfold.running.deployed.leftovers import Leftover
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.options import SAFELY, Loading
from bnfold.running.safety import FileFacts
from bnfold.running.samples import InputSpec
from bnfold.running.session import Opening
from bnfold.serialize import Report, Serializable, Shown
from bnfold.supervision import link

RUNTIMES = tuple(timing.RUNTIMES)
CONFIDENCE = 0.95

_STARTS = 12  # a quarter of them may be disturbed before the interval is
_WARM_UP = 0.2  # of the measuring time
_RESOLUTION = 0.01  # what one model seems to differ from a copy of itself, and more
_STEADY = 0.25  # of the median
# Seconds: far above what reading the clock takes, and far below the turns that a busy system gives
# its processes, so that few parts are interrupted and the median is of those that were not.
_PART = 0.0002

Call: TypeAlias = Callable[[], Any]
Seconds: TypeAlias = npt.NDArray[np.float64]
Verdict: TypeAlias = Literal["faster", "slower", "no difference"]


# --- the statistics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times(Serializable):
    """The median and the quartiles of what one inference took, in seconds."""

    median: float
    lower_quartile: float
    upper_quartile: float

    json_keys: ClassVar[tuple[str, ...]] = (
        "median",
        "lower_quartile",
        "upper_quartile",
        "interquartile_range",
    )

    @property
    def interquartile_range(self) -> float:
        """The interquartile range, in seconds."""
        return self.upper_quartile - self.lower_quartile


@dataclass(frozen=True)
class Result(Serializable):
    """One runtime at one batch size.

    Attributes:
        runtime: "keras", "onnxruntime" or "litert".
        version: which versions of what.
        batch: samples in one inference.
        ratio: the time of A over the time of B: how many times faster B is.
        interval: the ends of the confidence interval of `ratio`.
        starts: how often both models were started anew.
        a, b: what one inference of this batch took.
        rounds: how often each model was timed, over all starts.
        calls: inferences in each timing, of which it is the mean.
    """

    runtime: str
    version: str
    batch: int
    ratio: float
    interval: tuple[float, float]
    starts: int
    a: Times
    b: Times
    rounds: int
    calls: int

    json_keys: ClassVar[tuple[str, ...]] = (
        *("runtime", "version", "batch", "ratio", "interval", "starts", "a", "b", "rounds"),
        *("calls", "verdict", "steady"),
    )

    @property
    def steady(self) -> bool:
        """Whether the times of both vary little; they do not where other work takes turns too."""
        return all(
            found.interquartile_range <= _STEADY * found.median for found in (self.a, self.b)
        )

    @property
    def verdict(self) -> Verdict:
        """What B is, beside A; "no difference" when the interval contains 1 or all but does."""
        lower, upper = self.interval
        if lower <= 1 + _RESOLUTION and upper >= 1 - _RESOLUTION:
            return "no difference"
        return "faster" if lower > 1 else "slower"


def times(measured: Seconds) -> Times:
    """The median and the quartiles of some times in seconds."""
    lower, median, upper = (float(found) for found in np.quantile(measured, (0.25, 0.5, 0.75)))
    return Times(median, lower, upper)


def median_interval(observed: Sequence[float]) -> tuple[float, float]:
    """The ends of the sign test's interval of the median, of at least six observations.

    Raises ValueError for fewer, which cannot tell with this confidence.
    """
    n, outside = len(observed), (1 - CONFIDENCE) / 2
    below = np.cumsum([math.comb(n, k) for k in range(n + 1)]) / 2**n
    cut = int(np.searchsorted(below, outside, side="right"))
    if cut == 0:
        raise ValueError(f"{n} observations are too few for an interval")
    ordered = sorted(observed)
    return ordered[cut - 1], ordered[n - cut]


def result(
    name: str, version: str, batch: int, starts: Sequence[tuple[Seconds, Seconds]], calls: int
) -> Result:
    """Sum up the times of A and of B, in seconds, in the rounds of each start."""
    ratios = [float(np.median(a) / np.median(b)) for a, b in starts]
    first, second = (np.concatenate([start[at] for start in starts]) for at in (0, 1))
    return Result(
        runtime=name,
        version=version,
        batch=batch,
        ratio=float(np.median(ratios)),
        interval=median_interval(ratios),
        starts=len(starts),
        a=times(first),
        b=times(second),
        rounds=len(first),
        calls=calls,
    )


# --- the measurement -----------------------------------------------------------------------------


def order(turn: int) -> tuple[int, int]:
    """Which model comes first in a round, and which second: A and B change places every time."""
    return (0, 1) if turn % 2 == 0 else (1, 0)


def take_turns(
    calls: Sequence[Call],
    seconds: float,
    count: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Seconds, Seconds, int]:
    """Time two calls in turn for about so many seconds, after a warm-up.

    Returns the seconds per call of the first and of the second in each round, and the `count` of
    calls that each of these is the mean of: the given one or, for None, a fitting one.
    """
    shortest = _warm_up(calls, _WARM_UP * seconds, clock)
    count = count or _calls_in_a_part(shortest)
    rounds: list[list[float]] = []
    end = clock() + seconds
    # In whole pairs of rounds, so that each model is first equally often.
    while not rounds or len(rounds) % 2 or clock() < end:
        spent = [0.0, 0.0]
        for index in order(len(rounds)):
            spent[index] = _time(calls[index], count, clock)
        rounds.append(spent)
    measured = np.array(rounds)
    return measured[:, 0], measured[:, 1], count


def _warm_up(calls: Sequence[Call], seconds: float, clock: Callable[[], float]) -> float:
    """Call both in turn for a while; what the faster of them took at best, in seconds."""
    shortest, turn, end = math.inf, 0, clock() + seconds
    while not turn or clock() < end:
        for index in order(turn):
            shortest = min(shortest, _time(calls[index], 1, clock))
        turn += 1
    return shortest


def _calls_in_a_part(seconds: float) -> int:
    return max(1, math.ceil(_PART / max(seconds, _PART / 1000)))


def _time(call: Call, count: int, clock: Callable[[], float]) -> float:
    """The seconds that a call takes on average over `count` calls."""
    if count > 1:
        call()  # finds the caches as the other model left them
    begin = clock()
    for _ in range(count):
        call()
    return (clock() - begin) / count


@contextmanager
def _without_collector() -> Iterator[None]:
    """Collect garbage now and not again before the end."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --- the job -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skipped:
    """A runtime that was left out, at one batch size or, where `batch` is None, at all."""

    runtime: str
    batch: int | None
    reason: str


@dataclass(frozen=True)
class LeftBehind(Serializable):
    """What a runtime leaves of each BatchNormalization of A and of B, and so has to compute."""

    runtime: str
    a: tuple[Leftover, ...]
    b: tuple[Leftover, ...]


@dataclass(frozen=True, repr=False)
class BenchReport(Shown, Report):
    """The times of two models side by side.

    Attributes:
        a: the first model file.
        b: the second one; None where it is A, folded.
        folded: how many of how many BatchNormalization layers were folded, where B is A folded.
        threads: how many each runtime was given, None for its default.
        seconds: the measuring time for each runtime and batch size.
        seed: of the inputs.
        results: by runtime and batch size.
        skipped: what could not be measured, and why.
        notes: sentences on what had to be done to load the models.
        left_behind: what is left of the layers, by runtime where that could be seen.
    """

    a: Where
    b: Where | None
    folded: tuple[int, int] | None
    threads: int | None
    seconds: float
    seed: int
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    left_behind: tuple[LeftBehind, ...] = ()

    confidence: ClassVar[float] = CONFIDENCE
    json_keys: ClassVar[tuple[str, ...]] = (
        *("a", "b", "folded", "threads", "seconds", "seed", "confidence"),
        *("results", "skipped", "notes", "left_behind"),
    )

    @property
    def brief(self) -> str:
        """The ratios of the times of A and B, in a line."""
        found = [f"{one.ratio:.2f} in {one.runtime} at batch {one.batch}" for one in self.results]
        return f"times that B is as fast as A: {', '.join(found)}" if found else "nothing measured"

    def __bool__(self) -> NoReturn:
        """Refuse: times have no yes or no.

        Raises:
            TypeError: always.
        """
        raise TypeError("a measurement is neither true nor false: look at its results")

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        folded = self.folded and dict(zip(("layers", "of"), self.folded, strict=True))
        return {**super().to_dict(), "folded": folded}


@borrowing.guest()
def bench_files(
    a: Where,
    b: Where | None = None,
    *,
    threads: int | None = None,
    batches: int | Sequence[int] = (),
    seconds: float = 2.0,
    runtimes: Sequence[str] = (),
    seed: int = 0,
    loading: Loading = SAFELY,
    progress: Callable[[str], None] | None = None,
    sha256: Sequence[str] = (),
) -> BenchReport:
    """Time the models in two files side by side, the second being A folded where B is left out.

    `threads` are those of every runtime, for None its default; `batches` are the batch sizes,
    by default 1 or what the model fixes; `seconds` the measuring time for each runtime and batch
    size; `runtimes` some of `RUNTIMES`, by default all. Both files must have one of the digests
    `sha256`, if there are any.

    Raises:
        UnreadableModelError, UnsafeModelError: a model cannot be read or loaded.
        VerificationImpossibleError: Keras is not installed or cannot be imported, or a model has
            no graph.
        BnfoldError: the models take different inputs, or no runtime can run both.
    """
    seconds = options.finite("seconds", seconds, positive=True)
    threads = options.optional(options.whole, "threads", threads, least=1)
    batches = options.wholes("batch", batches, least=1)
    seed = options.whole("seed", seed)
    runtimes = options.some_of("runtimes", runtimes, RUNTIMES)
    processors = os.cpu_count() or 1
    if threads is not None and threads > processors:
        raise SettingsError(f"{threads} threads are more than the {processors} processors here")
    requirements.require("bench", everything="onnxruntime" in runtimes)
    report = link.told(progress)
    with Copies() as copies, link.temporary_folder() as folder:
        first, second = copies.of(a), None if b is None else copies.of(b)
        copies.enter_context(held([first] if second is None else [first, second], sha256))
        opening, folded = session.look([first], loading, None), None
        if second is None:
            report("folding A")
            second, folded = _folded(opening.files[0], folder)
        opening = opening.beside(second)
        if all(one.specs for one in opening.files):
            _agreed([one.specs for one in opening.files], opening.files, batches)
        opening.start(report, threads)
        pair = _load(opening, report)
    specs, sizes = _agreed([inputs.input_specs(one.model) for one in pair], opening.files, batches)
    bench = _Bench(pair, specs, threads, seconds, seed, report)
    results, skipped, left = bench.run(runtimes or RUNTIMES, sizes)
    if not results:
        reasons = "; ".join(f"{one.runtime}: {one.reason}" for one in skipped)
        raise BnfoldError(copies.said(f"no runtime can run both models: {reasons}"))
    notes = tuple(dict.fromkeys(note for loaded in pair for note in loaded.notes))
    told = tuple(replace(one, reason=copies.said(one.reason)) for one in skipped)
    found = tuple(results), told
    return BenchReport(a, b, folded, threads, seconds, seed, *found, notes, tuple(left))


def _folded(facts: FileFacts, directory: Path) -> tuple[Path, tuple[int, int]]:
    """Fold a model to a file in this directory, without proof; how many layers of how many."""
    suffix = {"keras": ".keras", "h5": ".h5"}.get(facts.kind, "")
    target = directory / f"folded{suffix}"
    plan = fold_file(facts.path, target, proof=None).plan
    return target, (len(plan.folds), len(plan.decisions))


def _load(opening: Opening, report: Callable[[str], None]) -> tuple[LoadedModel, LoadedModel]:
    try:
        first, second = opening.load(report)
    except CannotRunError as error:
        raise UnreadableModelError(str(error)) from error
    for loaded in (first, second):
        keras_runner.prepare_alone(loaded)
    return first, second


def _agreed(
    taken: Sequence[Sequence[InputSpec]],
    facts: Sequence[FileFacts],
    batches: Sequence[int],
) -> tuple[Sequence[InputSpec], list[int]]:
    """The inputs that both models take, and the batch sizes to time them with."""
    specs, others = taken
    for name, found in zip("AB", (specs, others), strict=True):
        if any(spec.dtype == "string" for spec in found):
            raise BnfoldError(f"{name} has string inputs, for which no samples can be made")
    if _shapes(specs) != _shapes(others):
        first, second = (printable(one.path.name) for one in facts)
        raise BnfoldError(
            f"{first} and {second} take different inputs: {_shapes(specs)} and {_shapes(others)}"
        )
    fixed = specs[0].shape[0]
    if fixed is not None and any(size != fixed for size in batches):
        raise BnfoldError(f"the models take batches of {fixed} only")
    return specs, list(dict.fromkeys(batches)) or [fixed or 1]


def _shapes(specs: Sequence[InputSpec]) -> str:
    return ", ".join(f"{spec.dtype}{list(spec.shape)}".replace("None", "any") for spec in specs)


@dataclass(frozen=True)
class _Bench:
    """Two loaded models of the same inputs, and how to time them."""

    pair: tuple[LoadedModel, LoadedModel]
    specs: Sequence[InputSpec]
    threads: int | None
    seconds: float
    seed: int
    report: Callable[[str], None]

    def run(
        self, names: Sequence[str], batches: Sequence[int]
    ) -> tuple[list[Result], list[Skipped], list[LeftBehind]]:
        """Time every runtime with every batch size; what cannot run is skipped with a reason."""
        results: list[Result] = []
        skipped: list[Skipped] = []
        left: list[LeftBehind] = []
        sizes = keras_runner.free_sizes(self.pair[0], self.specs)
        sample = samples.generate(self.specs, self.seed, sizes)[0]
        for name in dict.fromkeys(names):
            self.report(f"preparing {name}")
            try:
                prepared = self._each(functools.partial(self._prepare, name))
            except CannotRunError as error:
                skipped.append(Skipped(name, None, str(error)))
                continue
            for batch in batches:
                inputs = [_repeated(array, batch) for array in sample.inputs]
                try:
                    results.append(self._time(name, prepared, inputs, batch))
                except CannotRunError as error:
                    skipped.append(Skipped(name, batch, str(error)))
            both = [timing.left_behind(*one) for one in zip(prepared, self.pair, strict=True)]
            if both[0] is not None and both[1] is not None:
                left.append(LeftBehind(name, both[0], both[1]))
        return results, skipped, left

    def _prepare(self, name: str, at: int) -> timing.Start:
        return timing.prepare(name, self.pair[at], self.threads)

    def _each(self, make: Callable[[int], Any], turn: int = 0) -> list[Any]:
        """Make something of A and of B; a failure says of which. Raises CannotRunError."""
        made: list[Any] = [None, None]
        for at in order(turn):
            try:
                made[at] = make(at)
            except CannotRunError as error:
                raise CannotRunError(f"it cannot run {'AB'[at]}: {error}") from error
        return made

    def _time(
        self, name: str, prepared: Sequence[timing.Start], inputs: Sequence[Array], batch: int
    ) -> Result:
        self.report(f"timing {name}, batch {batch}")
        self._each(lambda at: timing.check(prepared[at], self.pair[at], inputs))
        starts, count = [], None
        for turn in range(_STARTS):
            calls = self._each(lambda at: timing.started(prepared[at], inputs), turn)
            with _without_collector():
                first, second, count = take_turns(calls, self.seconds / _STARTS, count)
            starts.append((first, second))
            del calls  # before the next start, so that it finds the memory free
        version = timing.version(name, self.pair[0].library)
        return result(name, version, batch, starts, count or 1)


def _repeated(array: Array, batch: int) -> Array:
    """So many samples, those of `array` again and again."""
    return array[np.arange(batch) % len(array)]
