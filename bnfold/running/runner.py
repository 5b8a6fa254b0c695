"""A model in one runtime and arithmetic: samples in, values by their keys out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from bnfold.running.arrays import Array
from bnfold.running.keras_runner import Weights
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import SampleSet

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Runner(Generic[Key]):
    """What computes the values of a model.

    Attributes:
        name: of the runtime and its arithmetic.
        keys: of the values, in the order of `run`, which may compute the first of them only.
        run: from samples of several kinds to all values, by kind. Raises CannotRunError.
        loaded: the model; only where `run` reads its weights anew can they be perturbed.
    """

    name: str
    keys: Sequence[Key]
    run: Callable[[Sequence[SampleSet]], list[list[Array]]]
    loaded: LoadedModel

    def evaluate(self, sets: Sequence[SampleSet]) -> dict[Key, list[Array]]:
        """Each value for each kind of samples. Raises CannotRunError."""
        columns = zip(*self.run(sets), strict=True)
        return {key: list(column) for key, column in zip(self.keys, columns, strict=False)}

    def perturbed(
        self,
        sets: Sequence[SampleSet],
        steps: Sequence[float],
        repetitions: int,
        seed: int,
        *,
        of_largest: float = 0.0,
    ) -> Generator[dict[Key, list[Array]]]:
        """The values each time that the weights are perturbed; then they are put back.

        Every weight is perturbed by its step, relative to its size, up or down at random; those of
        a kernel by `of_largest` of the largest one of their channel, where that is more.
        """
        weights = Weights(self.loaded, steps, seed, of_largest)
        with closing(weights.perturbed(repetitions)) as perturbed:
            for _ in perturbed:
                yield self.evaluate(sets)
