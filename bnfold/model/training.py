"""How calls come to run in training mode, in each version of Keras.

Measured with tf_keras 2.21, Keras 3.15 and the source of 3.16; `TRAINING_RULES` is the table. Up to
3.15, Keras 3 keeps an explicit `training=True` of one call for every layer that runs later in the
same outer call, also on a parallel branch and in what `model.export` traces, and so it does with
the default of a class: layers of augmentation take True, Resizing and CenterCrop too. Only a
`training` given to the outermost call overrides it. From 3.16 on a default stays with its layer,
and what a call says holds whatever is given to the model, in `predict` too. Keras 2 hands nothing
on. Keras 3 up to 3.15 writes the defaults of classes into a file as if calls had said them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from bnfold.errors import SettingsError

BY_DEFAULT = "takes training=True by default"
"""What is said of a layer that sets training mode without being told to."""


class TrainingRule(NamedTuple):
    """How the calls of a model come to their mode, in a range of versions of Keras.

    Attributes:
        versions: the range, for a sentence.
        option: a version in it, as the option `--keras` takes it.
        first: the first version of it.
        propagates: whether what a call says holds for all that runs later in the same outer call.
        propagates_defaults: whether the default of a class does so too.
        outer_wins: whether `training`, given to a model, overrides what the calls in it say.
    """

    versions: str
    option: str
    first: tuple[int, int]
    propagates: bool
    propagates_defaults: bool
    outer_wins: bool


KERAS_2 = TrainingRule("Keras 2", "2", (2, 0), False, False, False)
KERAS_3 = TrainingRule("Keras 3.0 to 3.15", "3.15", (3, 0), True, True, True)
KERAS_3_16 = TrainingRule("Keras 3.16 and later", "3.16", (3, 16), True, False, False)

TRAINING_RULES = (KERAS_2, KERAS_3, KERAS_3_16)
"""Every version of Keras, in order."""

ANY = "any"
"""In place of a version: the model is used with all that read its file."""


def training_rules(version: str) -> tuple[TrainingRule, ...]:
    """The rules of a version such as "3.16" or "3.15.1", or of all that begin so, such as "3".

    Raises:
        SettingsError: it is neither a version of Keras from 2 on nor "any".
    """
    if version == ANY:
        return TRAINING_RULES
    numbers = re.fullmatch(r"(\d{1,4})(?:\.(\d{1,4}))?(?:\.\w{1,40}|[a-z]\w{0,40})*", version)
    if numbers is None or numbers[1] not in {"2", "3"}:
        raise SettingsError(f"{version!r} is no version of Keras, such as 3.15, nor {ANY!r}")
    major = [rule for rule in TRAINING_RULES if rule.first[0] == int(numbers[1])]
    if numbers[2] is None:
        return tuple(major)
    return ([rule for rule in major if rule.first[1] <= int(numbers[2])][-1],)


def named_versions(rules: Sequence[TrainingRule]) -> str:
    """Ranges of versions, for a sentence: "Keras 2 and Keras 3.16 and later"."""
    if tuple(rules) == (KERAS_3, KERAS_3_16):
        return "Keras 3"
    if tuple(rules) == TRAINING_RULES:
        return "Keras"
    return " and ".join(rule.versions for rule in rules)


class Use(NamedTuple):
    """How a model is going to be used.

    Attributes:
        rules: those of the versions of Keras that will run it.
        inference: whether it is promised that layers which take training=True by default are only
            called for inference.
        archived: whether it is in a .keras archive or directory, of which Keras 3 reads its own
            only; of HDF5 files it reads those of Keras 2 too.
    """

    rules: tuple[TrainingRule, ...] = TRAINING_RULES
    inference: bool = False
    archived: bool = False


ANY_USE = Use()
"""By any Keras that reads the file, and as `model(x)` too."""


def is_set(argument: object) -> bool:
    """Whether a call's `training` may be true: False, None and 0 are not, a tensor may be."""
    return argument not in (None, False, 0)


def is_off(argument: object) -> bool:
    """Whether a call's `training` says that it is not training; None says nothing."""
    return argument is not None and not is_set(argument)
