"""What stands in the way of a map, and what a user could do about it."""

OTHER_SIDE = "put BatchNormalization on the other side of {layer}"
AXIS = "let it normalize the channel axis of {layer}"
NO_TRAINING = "call {layer} without training=True"
NO_OUTPUT = "leave what {layer} makes out of the outputs"
FROM_THE_END = "count its axis from the end, as in axis=-1"
NO_SOURCE = (
    "build the model without training=True, and with training=False in the calls of layers that "
    "take it by default, such as those of augmentation, and call set_weights"
)


class Obstacle(str):
    """The predicate of a sentence about a layer, and the remedy where there is one.

    The remedy is a change to the model that clears the way, if the model is built and trained
    again; `{layer}` stands in it for the layer.
    """

    remedy: str

    __slots__ = ("remedy",)

    def __new__(cls, predicate: str, remedy: str) -> "Obstacle":
        """The predicate is the string itself."""
        found = super().__new__(cls, predicate)
        found.remedy = remedy
        return found


class AxisObstacle(Obstacle):
    """What the axis that a map varies along is to the layer, which cannot take it in therefore."""

    __slots__ = ()


def remedy_of(predicate: str) -> str:
    """The remedy for an obstacle; empty where none is known."""
    return predicate.remedy if isinstance(predicate, Obstacle) else ""
