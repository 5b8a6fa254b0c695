"""The plan for a model file: what folds, and the BatchNormalization layers that its graph lacks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bnfold.folding.plan import Blocked, Plan, plan
from bnfold.model.container.model_file import ModelFile
from bnfold.model.unattached import loose_batchnorms

SUBCLASSED = (
    "the model is subclassed: its file holds weights but no graph, so nothing can be folded"
)
_CUSTOM = "it is, or is inside, a custom layer or wrapper, and the file does not say what that does"
_OPERATION = "it is an operation, whose statistics are not variables of a layer of its own"
_UNTOLD = "it cannot be matched with a layer of the graph"


def planned(model: ModelFile, keep: Sequence[str] = ()) -> Plan:
    """The plan for a file, with the layers that are not in its graph as far as they show."""
    with model.named():  # weights are read only now
        decided = plan(model.graph, keep)
        return replace(decided, decisions=(*decided.decisions, *_loose(model)))


def _loose(model: ModelFile) -> Iterator[Blocked]:
    """The layers in subclassed models and custom layers, as far as their variables show them."""
    subclassed = model.graph.kind == "subclassed"
    for found, path in loose_batchnorms(model):
        if path is not None:
            yield Blocked(found, path, _OPERATION if found.layer.is_operation else _CUSTOM)
        else:
            yield Blocked(found, None, SUBCLASSED if subclassed else _UNTOLD)
