"""The BatchNormalization layers of a model, and why one stays whatever its neighbours are."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bnfold.folding.affine import Affine, from_batchnorm
from bnfold.folding.keep import matches
from bnfold.folding.sentences import NO_SOURCE
from bnfold.model.batchnorm import BatchNorm, as_batchnorm
from bnfold.model.graph import Layer, LayerPath
from bnfold.model.keras_json import PLAIN_MODEL
from bnfold.model.masks import masks_are_named
from bnfold.model.modes import CallModes, Modes, modes_of
from bnfold.model.order import keras_order
from bnfold.model.program import Region
from bnfold.model.refusal import Refusal
from bnfold.model.training import BY_DEFAULT, TrainingRule, is_set, named_versions


class Candidate(NamedTuple):
    """A BatchNormalization, where it stands."""

    batchnorm: BatchNorm
    region: Region
    layer: Layer
    is_kept: bool

    @property
    def path(self) -> LayerPath:
        """That of the layer, or of its outermost wrapper."""
        return self.batchnorm.path


def candidates(region: Region, keep: Sequence[str]) -> Iterator[Candidate]:
    """Every BatchNormalization in the order of the layers."""
    for name in keras_order(region.graph):
        layer = region.graph.layers[name]
        batchnorm = as_batchnorm(layer, region.layer_path(name))
        if batchnorm is not None:
            yield Candidate(batchnorm, region, layer, matches(batchnorm.path, *keep))
        elif name in region.inside:
            yield from candidates(region.inside[name], keep)


def own_map(one: Candidate) -> Affine:
    """The map that a candidate is. Raises Refusal where it stays whatever is around it."""
    refusal = next(_problems(one), None)
    if refusal is not None:
        raise refusal
    return from_batchnorm(one.batchnorm)


def _problems(one: Candidate) -> Iterator[Refusal]:
    """Why a layer stays whatever is around it in the graph."""
    batchnorm, layer, region = one.batchnorm, one.layer, one.region
    training = _training_problem(one)
    if training is not None:
        yield training
    if one.is_kept:
        yield Refusal("it is kept on request")
    if not region.graph.builtin:
        yield Refusal(
            "the model's class is not Keras' own, and its code may use the layer freely",
            remedy=PLAIN_MODEL if region.parent is None else "",
        )
    if region.obstacle is not None:
        yield Refusal(region.obstacle.reason)
    if region.repeats(layer):
        yield Refusal("it stands in several places of the model")
    for call in region.calls_of(layer.name):
        if call.written.mask is not None and not masks_are_named(call.output()):
            yield Refusal("it is given a mask, which it passes on to the layers after it")
    if batchnorm.axis is None:
        yield Refusal("it normalizes over several axes at once")
    if batchnorm.is_ghost:
        yield Refusal("it has a virtual_batch_size, which splits the batch at inference too")
    if any(not 1 <= len(call.reads) <= 2 for call in layer.calls):
        yield Refusal("it is the first layer, and tells the shape of a Sequential without input")


def _training_problem(one: Candidate) -> Refusal | None:
    """Why a layer normalizes with the statistics of the batch, or makes others do so."""
    region, path = one.region, one.batchnorm.path
    modes = modes_of(region)
    called = any(is_set(call.training) for call in one.layer.calls)
    if not one.batchnorm.trainable:
        # A frozen layer uses its moving statistics whatever it is told; others may not.
        if called and any(other != path for other in modes.exposed):
            return Refusal(
                "it is called with training=True, which the mode of other layers depends on",
                remedy=NO_SOURCE,
            )
        return None
    exposure, spared = modes.exposed.get(path), "another call overrides that"
    if called:
        cause = "it is called with training=True"
    elif region.training is not None:
        cause = f"{region.training} around it is called with training=True"
    elif exposure is not None:
        cause = _propagated(exposure.cause, exposure.reaching or exposure.rules)
        spared = "not to this one"
    else:
        return None
    training = [rule for rule in modes.rules if modes.in_version(path, rule) != CallModes()]
    if not training:
        return Refusal(
            f"{cause}, though {spared} as the model stands", remedy=_no_training(modes, path)
        )
    is_sure = len(training) == len(modes.rules)
    return Refusal(
        f"{cause}, so {'' if is_sure else 'with that '}it normalizes with the batch's statistics",
        remedy=_no_training(modes, path),
        batch_statistics=is_sure,
    )


def _propagated(cause: str, rules: Sequence[TrainingRule]) -> str:
    return f"{cause}, which {named_versions(rules)} propagates to layers that run later"


_SAVED = "'bnfold rule BN007' has the lines"
_NO_TRAINING = (
    "no new training is needed: freeze the saved model (model.trainable = False), save it again "
    f"({_SAVED}), or build it without training=True and call set_weights"
)
_NO_TRAINING_BY_DEFAULT = (
    "no new training is needed: fold it with --inference if it is called for inference only, or "
    "build it with training=False in the calls of these layers and call set_weights; fit of Keras "
    "up to 3.15 augments all the same"
)


def _no_training(modes: Modes, path: LayerPath) -> str:
    """The remedy where a layer is in training mode."""
    exposure = modes.exposed.get(path)
    if exposure is None:
        return _NO_TRAINING
    remedy = _NO_TRAINING_BY_DEFAULT if exposure.cause.endswith(BY_DEFAULT) else _NO_TRAINING
    spared = [f"--keras {rule.option}" for rule in modes.readers if rule not in exposure.rules]
    if not spared:
        return remedy
    return f"{remedy}; or give {' or '.join(spared)} if no other version of Keras will run it"
