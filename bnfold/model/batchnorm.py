"""A BatchNormalization layer, typed: its settings checked, its four vectors in float64."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold.model import catalog
from bnfold.model.graph import Layer, Path, Weight, finite_number

Vector = NDArray[np.float64]

VECTORS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclass(frozen=True)
class BatchNorm:
    """One BatchNormalization of a model.

    Attributes:
        path: where it stands; a wrapped one has its wrapper's path.
        layer: the layer itself, taken out of its wrappers.
        wrappers: how many TimeDistributed stand around it.
    """

    path: Path
    layer: Layer
    wrappers: int = 0

    @property
    def is_configured(self) -> bool:
        """Whether the file tells its settings; it does not for layers inside custom classes."""
        return bool(self.layer.entry)

    @cached_property
    def weights(self) -> dict[str, Weight] | None:
        """Its variables by name; None where the file's are not those of a BatchNormalization."""
        found = catalog.weights(self.layer)
        if found is None or len({weight.shape for weight in found.values()}) > 1:
            return None
        return found

    @property
    def channels(self) -> int | None:
        """The length of its vectors."""
        return self.weights["moving_mean"].shape[0] if self.weights is not None else None

    @cached_property
    def vectors(self) -> dict[str, Vector] | None:
        """gamma, beta, moving_mean and moving_variance, each (channels,) in float64.

        Without `scale` gamma is 1, without `center` beta is 0.
        """
        if self.weights is None or self.channels is None:
            return None
        found = {name: w.read().astype(np.float64) for name, w in self.weights.items()}
        defaults = {"gamma": np.ones(self.channels), "beta": np.zeros(self.channels)}
        return {name: found.get(name, defaults.get(name)) for name in VECTORS}  # type: ignore[misc]

    @property
    def axis(self) -> int | None:
        """The axis it normalizes, as its tensor counts; None for several at once.

        Old versions write a list; a wrapper adds axes, behind the batch's, that its layer does not
        see.
        """
        axis = self.layer.config.get("axis", -1)
        if isinstance(axis, list) and len(axis) == 1:
            axis = axis[0]
        if type(axis) is not int:
            return None
        return axis + self.wrappers if axis > 0 else axis

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
        return bool(catalog.setting(self.layer, "center"))

    @property
    def scale(self) -> bool:
        """Whether it has a gamma."""
        return bool(catalog.setting(self.layer, "scale"))

    @property
    def trainable(self) -> bool:
        """False for a frozen layer, which uses its moving statistics always (not in TF 1)."""
        frozen = self.layer.config.get("trainable", True) is False
        return not frozen or self.layer.class_name == "BatchNormalizationV1"


def as_batchnorm(layer: Layer, path: Path) -> BatchNorm | None:
    """The BatchNormalization that a layer is, or that its wrappers hold; None when it is none."""
    wrappers = 0
    while layer.inner is not None:
        layer, wrappers = layer.inner, wrappers + 1
    return BatchNorm(path, layer, wrappers) if catalog.is_batchnorm(layer) else None
