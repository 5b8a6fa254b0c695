"""The samples that showed most, with what was computed of them, to be looked at and run again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bnfold.running.arrays import Array
from bnfold.running.samples import SampleSet
from bnfold.verification.result import Verification
from bnfold.verification.values import Arrays

Keep = Callable[["Replay"], None]
"""Is given the samples when a verification is over."""


@dataclass(frozen=True)
class Replay:
    """One kind of samples, and what every evaluation made of it.

    Attributes:
        inputs: by the names of the model's inputs; what `--data` takes.
        outputs: by evaluation, "reference" first, and then by the name of the output.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Mapping[str, Array]]

    def arrays(self) -> dict[str, Array]:
        """All arrays by the names that they have in an `.npz` file.

        An output of a runtime is called `output/RUNTIME/NAME`, which no input is.
        """
        found = dict(self.inputs)
        for runtime, outputs in self.outputs.items():
            for name, array in outputs.items():
                found[re.sub(r"[^\w./ -]", "_", f"output/{runtime}/{name}")] = array
        return found


def replay(
    found: Verification,
    names: Sequence[str],
    sets: Sequence[SampleSet],
    evaluations: Mapping[str, Arrays],
) -> Replay:
    """The kind of samples that the worst comparison is of; the first one where there is none.

    `names` are those of the inputs, `evaluations` what was computed, by what computed it.
    """
    worst = max(
        (one for one in found.comparisons if one.is_output),
        key=lambda one: (not one.passed, one.excess),
        default=None,
    )
    kinds = [one.kind for one in sets]
    at = kinds.index(worst.samples) if worst is not None and worst.samples in kinds else 0
    return Replay(
        dict(zip(names, sets[at].inputs, strict=True)),
        {
            runtime: {value.name: column[at] for value, column in arrays.items() if value.is_output}
            for runtime, arrays in evaluations.items()
        },
    )
