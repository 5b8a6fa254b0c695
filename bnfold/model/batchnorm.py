"""A BatchNormalization layer, typed: its settings checked, its four vectors in float64."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold.model import layers
from bnfold.model.container.printing import printable
from bnfold.model.graph import Layer, LayerPath, Weight, finite_number, show
from bnfold.model.refusal import Refusal

Vector = NDArray[np.float64]

VECTORS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclass(frozen=True, repr=False)
class BatchNorm:
    """One BatchNormalization of a model.

    Attributes:
        path: where it stands; a wrapped one has its wrapper's path.
        layer: the layer itself, taken out of its wrappers.
        wrappers: how many TimeDistributed stand around it.
    """

    path: LayerPath
    layer: Layer
    wrappers: int = 0

    def __repr__(self) -> str:
        return f"<BatchNorm: {printable(show(self.path))}>"

    @property
    def problem(self) -> Refusal | None:
        """Why its statistics cannot be read; None where they can."""
        if self.weights is not None:
            return None
        if self._mode_of_keras1:
            return Refusal(f"Keras 1 does not use them in mode {self._mode_of_keras1!r}")
        if self.layer.weights is None:
            return Refusal("its variables cannot be told from those of other layers in the file")
        if not self.layer.weights:
            return Refusal("the file holds no variables for it")
        return Refusal(
            "the variables that the file holds for it are not those of a BatchNormalization"
        )

    @property
    def is_configured(self) -> bool:
        """Whether the file tells its settings; it does not for layers inside custom classes."""
        return bool(self.layer.entry)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The settings that its config has in no form that says anything."""
        config = self.layer.config
        numbers = [name for name in ("momentum", "epsilon") if not _is_number(config.get(name, 0))]
        return tuple(numbers) if all(map(_is_axis, self._axes)) else (*numbers, "axis")

    @cached_property
    def weights(self) -> dict[str, Weight] | None:
        """Its variables by name; None where the file's are not those of a BatchNormalization.

        Those of Keras 1 with another mode than 0 do not use them (`keras1`).
        """
        if self._mode_of_keras1:
            return None
        found = layers.weights(self.layer, any_rank=self._has_wide_vectors)
        if found is None or len({weight.shape for weight in found.values()}) > 1:
            return None
        return found

    @property
    def _mode_of_keras1(self) -> object:
        return self.layer.config.get("mode")

    @property
    def channels(self) -> int | None:
        """How many numbers each of its vectors has; over several axes it has one for each place."""
        return math.prod(self.weights["moving_mean"].shape) if self.weights is not None else None

    @cached_property
    def vectors(self) -> dict[str, Vector] | None:
        """gamma, beta, moving_mean and moving_variance, each (channels,) in float64.

        Without `scale` gamma is 1, without `center` beta is 0.
        """
        if self.weights is None or self.channels is None:
            return None
        found = {n: w.read().astype(np.float64).reshape(-1) for n, w in self.weights.items()}
        if "gamma" not in found:
            found["gamma"] = np.ones(self.channels)
        if "beta" not in found:
            found["beta"] = np.zeros(self.channels)
        return {name: found[name] for name in VECTORS}

    @cached_property
    def broken(self) -> tuple[str, ...]:
        """The names of its vectors that have numbers which are not finite."""
        return tuple(
            name
            for name, values in (self.vectors or {}).items()
            if np.count_nonzero(np.isfinite(values)) < values.size
        )

    @property
    def axis(self) -> int | None:
        """The axis it normalizes, as its tensor counts; None for several at once.

        Old versions write a list; a wrapper adds axes, after the batch's, that its layer does not
        see.
        """
        axes = self._axes
        if len(axes) != 1 or type(axes[0]) is not int:
            return None
        axis = axes[0] if axes[0] < 0 or not self.is_ghost else self._axis_of_ghost(axes[0])
        return axis + self.wrappers if axis > 0 else axis

    @property
    def _axes(self) -> list[object]:
        axis = self.layer.config.get("axis", -1)
        return axis if isinstance(axis, list) else [axis]

    @property
    def is_ghost(self) -> bool:
        """Whether Keras 2 trains it on parts of a batch, each with statistics of its own."""
        return self.layer.config.get("virtual_batch_size") is not None

    def _axis_of_ghost(self, named: int) -> int:
        """The axis that it normalizes, as its tensor counts.

        Its variables have an axis of size 1 more, for the parts of the batch, after the first one.
        Keras 2 counts that in the axis that it saves.
        """
        weights = self.layer.weights or ()
        long = (
            [number for number, size in enumerate(weights[0].shape) if size > 1] if weights else []
        )
        return (long[0] if len(long) == 1 else named) - 1

    @property
    def _has_wide_vectors(self) -> bool:
        """Whether its variables have as many axes as its tensor, or more."""
        return self.is_ghost or len(self._axes) > 1

    @property
    def epsilon(self) -> float | None:
        """What is added to the variance; None where the config gives no number."""
        return finite_number(self.layer.config.get("epsilon", 1e-3))

    @property
    def momentum(self) -> float | None:
        """The share of the old statistics that a training step keeps."""
        return finite_number(self.layer.config.get("momentum", 0.99))

    @property
    def center(self) -> bool:
        """Whether it has a beta."""
        return bool(layers.setting(self.layer, "center"))

    @property
    def scale(self) -> bool:
        """Whether it has a gamma."""
        return bool(layers.setting(self.layer, "scale"))

    @property
    def trainable(self) -> bool:
        """False for a frozen layer, which uses its moving statistics always (not in TF 1)."""
        frozen = self.layer.config.get("trainable", True) is False
        return not frozen or self.layer.class_name == "BatchNormalizationV1"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_axis(value: object) -> bool:
    return type(value) is int


def as_batchnorm(layer: Layer, path: LayerPath) -> BatchNorm | None:
    """The BatchNormalization that a layer is, or that its wrappers hold; None for another."""
    wrappers = 0
    while layer.inner is not None:
        layer, wrappers = layer.inner, wrappers + 1
    return BatchNorm(path, layer, wrappers) if layers.is_batchnorm(layer) else None
