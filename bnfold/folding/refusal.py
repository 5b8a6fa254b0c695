"""Why a map stops at a layer, or a BatchNormalization stays: one form, and the remedies."""

from bnfold.folding.weights import Magnitudes
from bnfold.model.graph import Path

OTHER_SIDE = "put BatchNormalization on the other side of {layer}"
BEFORE_ACTIVATION = "put BatchNormalization between {layer} and its activation"
AXIS = "let it normalize the channel axis of {layer}"
NO_TRAINING = "call {layer} without training=True"
NO_OUTPUT = "leave what {layer} makes out of the outputs"
FROM_THE_END = "count its axis from the end, as in axis=-1"
NO_SOURCE = (
    "build the model without training=True, and with training=False in the calls of layers that "
    "take it by default, such as those of augmentation, and call set_weights"
)

OTHER_VARIABLES = "has other variables in the file than those of its class"
QUANTIZED = "is quantized or has a dtype policy of its own"
NO_LAYER = "can neither absorb a per-channel scale and shift nor be moved past one"
NO_OPERATION = "is an operation that cannot be moved past a per-channel scale and shift"


class Refusal(Exception):  # noqa: N818 (an answer, not an error)
    """Why a map stops at a layer, or why a BatchNormalization stays.

    A rule raises it with the predicate of a sentence about its layer, and the search gives the
    sentence its subject. It never leaves `plan`, which keeps the sentence in a `Blocked`.

    Attributes:
        reason: the predicate, or the whole sentence.
        remedy: a change to the model that clears the way, if the model is built and trained again;
            empty where none is known. `{layer}` stands in it for the layer.
        at: the layer in the way, where there is one.
        about_axis: whether the axis that the map varies along is in the way. The reason of a rule
            is what that axis is to the layer then: "not the channel axis of".
        magnitudes: those of the weights that would not fit their dtype, where that is in the way.
        batch_statistics: whether the layer normalizes with the statistics of the batch.
    """

    def __init__(
        self,
        reason: str,
        remedy: str = "",
        at: Path | None = None,
        *,
        about_axis: bool = False,
        magnitudes: tuple[Magnitudes, ...] = (),
        batch_statistics: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.at = at
        self.about_axis = about_axis
        self.magnitudes = magnitudes
        self.batch_statistics = batch_statistics


def other_axis(relation: str = "not the channel axis of") -> Refusal:
    """The map varies along an axis that is this to the layer."""
    return Refusal(relation, AXIS, about_axis=True)
