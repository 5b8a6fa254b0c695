"""Where a rule of `carry` or `absorb` is asked: one call of one layer, and what goes in and out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.model.graph import Layer
from bnfold.model.shape_rules import Shape


@dataclass(frozen=True)
class Site:
    """One call of a layer, seen from inside its TimeDistributed wrappers.

    Attributes:
        layer: the layer.
        inputs: the shape of each tensor that goes in, None where it is unknown.
        output: the shape of what comes out.
        training: whether the call, or one around it, may run the layer in training mode.
        masked: whether the layer reads masks, and one of its inputs may carry one.
        operands: what an operation is given by position, None in the place of each tensor.
        keywords: what an operation is given by name.
    """

    layer: Layer
    inputs: tuple[Shape | None, ...]
    output: Shape | None
    training: bool = False
    masked: bool = False
    operands: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, name: str, default: Any = None) -> Any:
        """What the layer's config says."""
        return self.layer.config.get(name, default)

    @property
    def channels_first(self) -> bool:
        """Whether the layer takes axis 1 for its channels, behind which the spatial axes stand."""
        return bool(self.setting("data_format") == "channels_first")

    @property
    def rank(self) -> int | None:
        """How many axes the output has."""
        return None if self.output is None else len(self.output)
