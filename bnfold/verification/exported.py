"""Whether an ONNX file computes what a Keras model computes.

What is judged is the file itself, in ONNX Runtime with its graph optimisations as users get them
and without any, against MODEL as `model.predict` computes it: one comparison that covers the fold
and the conversion alike. For each channel of an output

    |onnx - keras| <= 8 tolerance

where `tolerance` is that of `bnfold verify` with Keras as the yardstick: four times what rounding
the weights does to the two Keras models. Another runtime also sums in another order and
approximates exp and tanh in another way, which the roundings of the weights do not measure; hence
the factor. Of forty kinds of models none took more than a quarter of what that allows.

Where both values are below one rounding of the output's largest magnitude, which for a softmax or
sigmoid is one, they count as the same zero: where those are saturated, 1e-43 against 0 or ONNX
Runtime's 1.5e-8 for sigmoid(-40), nothing that is measured moves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.verification import runtime, samples
from bnfold.verification.compare import (
    Array,
    Errors,
    Outcome,
    Rule,
    Yardstick,
    agrees,
    compare,
    errors,
    failed,
    not_finite,
)
from bnfold.verification.result import plain, record
from bnfold.verification.runtime import LoadedModel
from bnfold.verification.samples import SampleSet
from bnfold.verification.tensors import Interface, Port

_FACTOR = 8.0
_REPETITIONS = 2
_RULE = f"error at most {_FACTOR * 4:g} times the measured rounding noise of the channel"
RUNTIMES = {"onnxruntime": True, "onnxruntime without optimisations": False}
"""The ways in which ONNX Runtime runs the file, and whether it optimises the graph."""


@dataclass(frozen=True)
class OutputCheck:
    """One output of the ONNX file in one way to run it.

    `max_abs_error` is the largest error of all samples. `error` and `tolerance` are those of the
    element with the largest ratio of the two, which is `excess`, and `samples` is the kind of
    samples it was found at. `exercised` is False for an output that never changed, so that passing
    says little.
    """

    output: str
    runtime: str
    samples: str
    max_abs_error: float
    error: float
    tolerance: float
    excess: float
    passed: bool
    exercised: bool

    def to_dict(self) -> dict[str, Any]:
        """All fields for JSON; a number that is not finite becomes None."""
        return record(self)


@dataclass(frozen=True)
class Check:
    """What ONNX Runtime computes, compared with what Keras computes from MODEL.

    Attributes:
        outputs: every output in every runtime.
        differences: sentences on what is not the same; empty when the file is right.
        warnings: sentences on what limits this.
        sample_count: how many samples were run.
        sample_kinds: what kinds of samples.
        seed: the seed that they come from.
        library: "keras" or "tf_keras".
    """

    outputs: tuple[OutputCheck, ...]
    differences: tuple[str, ...]
    warnings: tuple[str, ...]
    sample_count: int
    sample_kinds: tuple[str, ...]
    seed: int
    library: str

    def __bool__(self) -> bool:
        """Whether it passed."""
        return self.passed

    @property
    def passed(self) -> bool:
        """Whether the two compute the same."""
        return not self.differences

    @property
    def max_excess(self) -> float:
        """The largest share of its tolerance that an error took."""
        return max((one.excess for one in self.outputs), default=0.0)

    @property
    def max_abs_error(self) -> float:
        """The largest error of all outputs."""
        return max((one.max_abs_error for one in self.outputs), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The check for JSON."""
        return {
            "passed": self.passed,
            "library": self.library,
            "rule": _RULE,
            "seed": self.seed,
            "sample_count": self.sample_count,
            "sample_kinds": list(self.sample_kinds),
            "max_abs_error": plain(self.max_abs_error),
            "differences": list(self.differences),
            "warnings": list(self.warnings),
            "outputs": [one.to_dict() for one in self.outputs],
        }


def named_ports(interface: Interface) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of the ONNX file: the model's, under names that occur once."""
    inputs, outputs = runtime.port_names(interface)
    return _renamed(interface.inputs, inputs), _renamed(interface.outputs, outputs)


def _renamed(ports: Sequence[Port], names: Sequence[str]) -> tuple[Port, ...]:
    return tuple(replace(port, name=name) for port, name in zip(ports, names, strict=True))


@dataclass(frozen=True)
class Measured:
    """What Keras computes from a model, by sample set and output, and how far rounding moves it.

    `moved` has an entry for each time that the weights were moved; `units` are by output.
    """

    values: list[list[Array]]
    moved: list[list[list[Errors]]]
    units: list[float]


def measure(loaded: LoadedModel, sets: Sequence[SampleSet], seed: int) -> Measured:
    """Run a model with Keras, as it is and with its weights moved. Raises CannotRunError."""
    steps = runtime.moves(loaded).computed
    values = runtime.evaluate(loaded, sets, training=False)
    moved = runtime.movement(
        loaded,
        sets,
        values,
        steps=steps,
        repetitions=_REPETITIONS,
        seed=seed,
        training=False,
    )
    return Measured(values, list(moved), runtime.output_units(loaded, steps))


@dataclass(frozen=True)
class Trial:
    """What Keras computes, and the judgement on files that should compute the same.

    `expected` is by sample set and output; an output is `bounded` when it ends in a softmax or
    sigmoid. `warnings` are on the samples.
    """

    interface: Interface
    bounded: Sequence[bool]
    sets: Sequence[SampleSet]
    expected: Sequence[Sequence[Yardstick]]
    seed: int
    library: str
    warnings: Sequence[str]

    def check(self, path: Path) -> Check:
        """Compare the ONNX file with Keras. Raises CannotRunError."""
        outputs, differences = [], []
        for name, optimised in RUNTIMES.items():
            for found, outcome in self._compare(path, name, optimised=optimised):
                outputs.append(found)
                if not found.passed:
                    differences.append(_sentence(found, outcome))
        unmoved = dict.fromkeys(one.output for one in outputs if not one.exercised)
        return Check(
            outputs=tuple(outputs),
            differences=tuple(differences),
            warnings=(
                *self.warnings,
                *(f"output {name!r} was not exercised: it never changed" for name in unmoved),
            ),
            sample_count=sum(one.count for one in self.sets),
            sample_kinds=tuple(one.kind for one in self.sets),
            seed=self.seed,
            library=self.library,
        )

    def _compare(
        self, path: Path, name: str, *, optimised: bool
    ) -> Iterator[tuple[OutputCheck, Outcome]]:
        exported = runtime.open_onnx(path, optimised=optimised)
        dtypes = [port.dtype for port in self.interface.outputs]
        values = samples.run_all(functools.partial(runtime.run_as, exported, dtypes), self.sets)
        for index, port in enumerate(named_ports(self.interface)[1]):
            rows = [row[index] for row in self.expected]
            found = [row[index] for row in values]
            yield self._worst(port.name, name, rows, found, bounded=self.bounded[index])

    def _worst(
        self,
        output: str,
        name: str,
        rows: Sequence[Yardstick],
        found: Sequence[Array],
        *,
        bounded: bool,
    ) -> tuple[OutputCheck, Outcome]:
        floor = _floor(rows, bounded=bounded)
        outcomes = [_judge(row, value, floor) for row, value in zip(rows, found, strict=True)]
        passed = [_passed(*three) for three in zip(outcomes, rows, found, strict=True)]
        worst = max(range(len(rows)), key=lambda at: (not passed[at], outcomes[at].excess))
        outcome = outcomes[worst]
        check = OutputCheck(
            output=output,
            runtime=name,
            samples=self.sets[worst].kind,
            max_abs_error=max(
                _largest_error(row.value, value) for row, value in zip(rows, found, strict=True)
            ),
            error=outcome.error,
            tolerance=_FACTOR * outcome.tolerance,
            excess=outcome.excess / _FACTOR,
            passed=all(passed),
            exercised=_is_exercised(rows),
        )
        return check, outcome


def _floor(rows: Sequence[Yardstick], *, bounded: bool) -> float:
    """What counts as zero in an output: one rounding of its largest magnitude."""
    return rows[0].unit * max([row.truth.max_abs for row in rows] + [1.0] * bounded)


def _judge(expected: Yardstick, value: Array, floor: float) -> Outcome:
    """Compare what ONNX Runtime computes; in 16 bits a fold removes steps that can overflow."""
    problem = not_finite(expected.value, value, forgive_overflow=True)
    if problem is not None:
        return failed(problem)
    heard = _without_noise(expected.value, value, floor)
    return compare(expected, None, errors(expected.value, heard), Rule())


def _without_noise(expected: Array, value: Array, floor: float) -> Array:
    """What ONNX Runtime computes, put to what Keras computes where both are below the floor."""
    if expected.shape != value.shape or value.dtype.kind != "f":
        return value
    with np.errstate(invalid="ignore"):
        return np.where(np.maximum(np.abs(value), np.abs(expected)) <= floor, expected, value)


def _largest_error(expected: Array, value: Array) -> float:
    """The largest error where both are finite; infinite for shapes that differ."""
    if expected.shape != value.shape:
        return float("inf")
    known = np.isfinite(expected) & np.isfinite(value)
    distances = np.abs(value[known].astype(np.float64) - expected[known].astype(np.float64))
    return float(distances.max(initial=0.0))


def _passed(outcome: Outcome, expected: Yardstick, value: Array) -> bool:
    if outcome.problem is not None:
        return False
    if not expected.truth.is_float:
        return agrees(expected, value)  # rounding may tip an argmax over
    return outcome.excess <= _FACTOR


def _is_exercised(rows: Sequence[Yardstick]) -> bool:
    """Whether an output differs between any two samples; one sample alone cannot tell."""
    if len({row.value.shape[1:] for row in rows}) > 1:
        return True
    together = np.concatenate([row.value.reshape(len(row.value), -1) for row in rows])
    return len(together) < 2 or bool(np.any(together != together[:1]))


def _sentence(found: OutputCheck, outcome: Outcome) -> str:
    place = f"{found.runtime}: output {found.output!r}"
    if outcome.problem is not None:
        return f"{place}: {outcome.problem.replace('folded model', 'ONNX file')}"
    return (
        f"{place} is off by {found.error:.3g}, {found.excess:.3g} times the tolerance of"
        f" {found.tolerance:.3g} ({found.samples})"
    )
