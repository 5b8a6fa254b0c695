"""Why something cannot be done with a model, or with a layer of it: the one form of "no"."""


class Refusal(Exception):  # noqa: N818 (an answer, not an error)
    """Why a map stops at a layer, why a BatchNormalization stays, or why it is no map.

    It is raised by what is asked for something, and is the value of what a model is known to
    refuse. A rule gives the predicate of a sentence about its layer, and the search gives that its
    subject. It never leaves `plan`, which keeps the sentence in a `Blocked`.

    Attributes:
        reason: the predicate, or the whole sentence.
        remedy: a change to the model that would help, if the model is built and trained again;
            empty where none is known. `{layer}` stands in it for the layer.
        at: the path of the layer that prevents it, where there is one.
        about_axis: whether a rule says what the axis that the map varies along is to its layer:
            "not the channel axis of".
        batch_statistics: whether the layer normalizes with the statistics of the batch.
    """

    def __init__(
        self,
        reason: str,
        remedy: str = "",
        at: tuple[str, ...] | None = None,
        *,
        about_axis: bool = False,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.at = at
        self.about_axis = about_axis
        self.batch_statistics = batch_statistics

    def alone(self) -> "Refusal":
        """The answer without the code that it comes from, to be kept.

        That would keep all that was looked at until the next search for garbage.
        """
        self.__traceback__ = self.__context__ = None
        return self
