"""A deployed model as values: what goes in, what comes out, and how precisely it computes.

Arrays go in and come out in the file's own dtypes, in the order of its inputs and outputs. What
they mean for the Keras model that the file is compared with is `bnfold.running.deployed.binding`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnfold.running.arrays import Array

Call = Callable[[Sequence[Array]], list[Array]]
"""One inference: an array for each input, an array for each output. Raises CannotRunError."""


@dataclass(frozen=True)
class Endpoint:
    """An input or an output of a deployed model.

    Attributes:
        name: what the file calls it.
        shape: None for a free size; None in all where the file does not say it.
        dtype: of the arrays that go in or come out.
        scale: of a quantized one, which stands for `scale * (q - zero_point)`; None of others.
        zero_point: see `scale`.
        position: the place that its name gives it among all, as `output_3` does; None for none.
        limits: the smallest and the largest number that are not clipped where it is quantized;
            None where nothing says so.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str
    scale: float | None = None
    zero_point: int = 0
    position: int | None = None
    limits: tuple[float, float] | None = None


def limits(dtype: str, scale: float | None, zero_point: int) -> tuple[float, float] | None:
    """The smallest and the largest number that quantized ones stand for."""
    if scale is None:
        return None
    kind = np.iinfo(dtype)
    low, high = (scale * (end - zero_point) for end in (kind.min, kind.max))
    return low, high


@dataclass(frozen=True)
class Origin:
    """Of what bnfold made a file, as the file says: the name of a model file and its SHA-256.

    `is_recalibrated` tells whether its moving statistics were estimated again before.
    """

    source: str
    sha256: str
    is_recalibrated: bool


def origin(made: Mapping[str, object] | bytes) -> Origin | None:
    """What a record tells of that, or the JSON text of one; None where it tells nothing."""
    if isinstance(made, bytes):
        try:
            made = json.loads(made)
        except (ValueError, RecursionError):
            return None
    if not isinstance(made, Mapping):
        return None
    source, digest = made.get("source"), made.get("source_sha256")
    if not isinstance(source, str) or not isinstance(digest, str):
        return None
    return Origin(source, digest, "recalibrated" in made)


@dataclass(frozen=True)
class Precision:
    """How precisely a deployed model computes.

    Attributes:
        name: what is said of it, such as "float32", "float16" or "int8 weights".
        float_dtype: the least precise floating dtype in it.
        weight_bits: of the most coarsely quantized weights; None where none are.
        value_bits: of the values between layers, where these are quantized too.
        is_calibrated: whether they are by ranges that were measured on samples. What is outside of
            these ranges is clipped.
    """

    name: str = "float32"
    float_dtype: str = "float32"
    weight_bits: int | None = None
    value_bits: int | None = None
    is_calibrated: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether numbers are integers with a scale."""
        return self.weight_bits is not None or self.value_bits is not None


FULL = Precision()
"""That of a file that computes in float32."""


@dataclass(frozen=True)
class Inner:
    """A value inside a deployed model that can be put out.

    Attributes:
        name: of the tensor.
        layer: the scopes of the operation that makes it, outermost first, as its name has them.
        scale: as of an `Endpoint`.
        zero_point: likewise.
    """

    name: str
    layer: tuple[str, ...]
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True)
class Deployed(ABC):
    """A file that is deployed, as far as it says of itself.

    Attributes:
        path: of the file or folder.
        inputs: in the file's order.
        outputs: likewise.
        precision: how precisely it computes.
        producer: what made it, where it says so.
        notes: sentences on what is odd about it.
        others: the same as it is called by other signatures, where none is the default one.
        origin: of what bnfold made it, where it says so.
    """

    path: Path
    inputs: tuple[Endpoint, ...]
    outputs: tuple[Endpoint, ...]
    precision: Precision
    producer: str | None
    notes: tuple[str, ...]
    others: tuple[Deployed, ...] = field(default=(), kw_only=True)
    origin: Origin | None = field(default=None, kw_only=True)

    format: ClassVar[str]
    runtime: ClassVar[str]
    runtimes: ClassVar[dict[str, bool]]
    """How its runtime is started: by name, and whether it optimises the model."""

    @abstractmethod
    def start(self, *, optimised: bool = True) -> Call:
        """Load it into its runtime. Raises CannotRunError."""

    @abstractmethod
    def inner(self) -> Sequence[Inner]:
        """The values inside it whose names tell something, in the order of computation."""

    @abstractmethod
    def start_showing(self, inner: Sequence[Inner]) -> Call:
        """The same with these values after the outputs, not optimised. Raises CannotRunError."""
