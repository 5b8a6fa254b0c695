"""The plan for a model file: what folds, and the BatchNormalization layers that its graph lacks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bnfold.errors import SettingsError
from bnfold.folding.plan import Blocked, Plan, plan
from bnfold.model.container.model_file import ModelFile
from bnfold.model.training import ANY, KERAS_2, TRAINING_RULES, TrainingRule, Use, training_rules
from bnfold.model.unattached import loose_batchnorms
from bnfold.running.installed import installed_version

SUBCLASSED = (
    "the model is subclassed: its file holds weights but no graph, so nothing can be folded"
)
_CUSTOM = "it is, or is inside, a custom layer or wrapper, and the file does not say what that does"
_OPERATION = "it is an operation, whose statistics are not variables of a layer of its own"
_UNTOLD = "it cannot be matched with a layer of the graph"


def planned(
    model: ModelFile,
    keep: Sequence[str] = (),
    *,
    keras: str | None = None,
    inference: bool = False,
) -> Plan:
    """The plan for a file, with the layers that are not in its graph as far as they show.

    `keras` is the version that will run the model, such as "3.16", or "any"; None is the installed
    one, and any where none is installed. With `inference` layers that take training=True by default
    count as called with training=False.

    Raises:
        SettingsError: `keras` is no version.
    """
    use = Use(_rules(keras), inference, archived=model.kind != "h5")
    # Weights are read only now, and what a number that is not finite means is for others to say.
    with model.named(), np.errstate(all="ignore"):
        decided = plan(model.graph, keep, use)
        return replace(decided, decisions=(*decided.decisions, *_loose(model)))


def _rules(keras: str | None) -> tuple[TrainingRule, ...]:
    """Those of the versions that will run a model; see `planned`.

    A file of Keras 2 is run by Keras 2 wherever else it is: the installed Keras 3 is but what
    bnfold proves with.
    """
    if keras is not None:
        return training_rules(keras)
    try:
        installed = training_rules(installed_version("keras") or ANY)
    except SettingsError:  # it is a Keras that nothing is known of
        installed = TRAINING_RULES
    return (KERAS_2, *(rule for rule in installed if rule is not KERAS_2))


def _loose(model: ModelFile) -> Iterator[Blocked]:
    """The layers in subclassed models and custom layers, as far as their variables show them."""
    subclassed = model.graph.kind == "subclassed"
    for found, path in loose_batchnorms(model):
        if path is not None:
            yield Blocked(found, path, _OPERATION if found.layer.is_operation else _CUSTOM)
        else:
            yield Blocked(found, None, SUBCLASSED if subclassed else _UNTOLD)
