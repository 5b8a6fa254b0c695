"""The remedies, and sentences that several refusals share."""

from bnfold.model.refusal import Refusal

OTHER_SIDE = "put BatchNormalization on the other side of {layer}"
BEFORE_ACTIVATION = "put BatchNormalization between {layer} and its activation"
NO_TRAINING = "call {layer} without training=True"
NO_SOURCE = (
    "build the model without training=True, and with training=False in the calls of layers that "
    "take it by default, such as those of augmentation, and call set_weights"
)

OTHER_VARIABLES = "has other variables in the file than those of its class"
QUANTIZED = "is quantized or has a dtype policy of its own"
NO_LAYER = "can neither absorb a per-channel scale and shift nor be moved past one"
NO_OPERATION = "is an operation that cannot be moved past a per-channel scale and shift"


def other_axis(relation: str = "not the channel axis of") -> Refusal:
    """The map varies along an axis that is this to the layer."""
    return Refusal(relation, about_axis=True)
