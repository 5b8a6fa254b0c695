"""What the two searches share: one BatchNormalization, one direction, and what may absorb its map.

Nothing is changed here: a search only says which layers would have to absorb what.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bnfold.folding.affine import MOST_NUMBERS, Affine
from bnfold.folding.candidate import Candidate
from bnfold.folding.rule import Absorb, Site, check_bias_axis
from bnfold.folding.rules import rule_of
from bnfold.folding.sentences import NO_LAYER, NO_OPERATION, QUANTIZED
from bnfold.folding.state import NUMBERS_FOR_A_SLOT, Demand, FoldState, Place
from bnfold.model import inbound_nodes, layers
from bnfold.model.container.printing import printable
from bnfold.model.graph import Layer, LayerPath, chain, show
from bnfold.model.identity import foreign_settings
from bnfold.model.policy import policy
from bnfold.model.program import Call, Region, Value
from bnfold.model.refusal import Refusal
from bnfold.model.shape_rules import Shape

_MAX_STEPS = 20_000
"""For one layer, in one direction."""
_MAX_NUMBERS = 8 * MOST_NUMBERS
"""In the maps that one search meets, some of which it keeps."""
_TOO_MANY = "there are too many paths to search"


@dataclass(eq=False)
class Search:
    """One BatchNormalization in one direction: `paths` lead to layers that absorb its map.

    All methods raise Refusal where something prevents that.

    Attributes:
        state: what has been folded so far.
        one: the BatchNormalization.
        vectors: the map that it is by now, as vectors.
        into_batchnorms: whether another BatchNormalization may absorb it.
        dtype: the one that it computes in.
        affine: the map on its axis.
        first: the first obstacle that the search met and went around.
    """

    state: FoldState
    one: Candidate
    vectors: Affine
    into_batchnorms: bool
    dtype: str = field(init=False)
    affine: Affine = field(init=False)
    first: Refusal | None = field(default=None, init=False)
    _steps: int = field(default=0, init=False)
    _numbers: int = field(default=0, init=False)
    _is_asking: bool = field(default=False, init=False)  # what a remedy would do

    def __post_init__(self) -> None:
        """Find out what the map is where the layer stands."""
        self.count_step(1)
        self.dtype = self._compute_dtype()
        self.affine = self._on_its_axis(self.vectors)

    @property
    def axis(self) -> int | None:
        """The axis that the layer normalizes, as its config has it."""
        return self.one.batchnorm.axis

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of the layer."""
        return self.one.region.calls_of(self.one.layer.name)

    def paths(self) -> Iterator[list[Demand]]:
        """The demands along each path."""
        raise NotImplementedError

    def obstacle(self) -> Refusal:
        """The first obstacle that the search met."""
        return self.first or Refusal(_TOO_MANY)

    def _compute_dtype(self) -> str:
        found = {policy(part) for part in chain(self.one.layer)}
        known = {one.compute for one in found if one is not None}
        if None in found or len(known) != 1:
            raise Refusal(f"it {QUANTIZED}")
        return known.pop()

    def _on_its_axis(self, affine: Affine) -> Affine:
        axis = self.axis
        if axis is None:
            raise Refusal("it normalizes over several axes at once")
        shapes = (call.reads[0].shape for call in self.calls)
        ranks = {None if shape is None else len(shape) for shape in shapes}
        rank = ranks.pop() if len(ranks) == 1 else None
        if rank is None and axis >= 0:
            raise Refusal(
                f"it normalizes axis {axis}, which may not be the channel axis (the rank is "
                "unknown)"
            )
        if rank is not None:
            axis = axis - rank if axis >= 0 else axis
            if axis == -rank:
                raise Refusal(f"it normalizes axis {self.axis}, the batch")
            if not -rank < axis < 0:
                raise Refusal(f"it normalizes axis {self.axis}, and its input has {rank} axes")
        return affine.along(axis)

    def count_step(self, slots: int, *affines: Affine) -> None:
        """Note that a call with so many inputs is looked at, and these maps of them."""
        self._steps += 1
        numbers = sum(affine.scale.size + affine.shift.size for affine in affines)
        self._numbers += numbers
        if self._steps > _MAX_STEPS:
            raise Refusal(_TOO_MANY)
        if self._numbers > _MAX_NUMBERS:
            raise Refusal("the maps of all that it could be moved past would take too much memory")
        if not self.state.work(slots + numbers // NUMBERS_FOR_A_SLOT):
            raise Refusal("the search for layers to absorb it reached its limit")

    # --- what a map may cross ---------------------------------------------------------------------

    def check_boundary(self, region: Region, affine: Affine, where: str, outer: Value) -> None:
        """Whether a map can cross a nested model's boundary; `outer` is its tensor outside."""
        if region.closed is not None:
            raise Refusal(
                f"{where} {title_of(region)}, which {region.closed.reason}", at=region.path
            )
        if region.wrappers:
            rank = None if outer.shape is None else len(outer.shape) - region.wrappers
            self._check_axes(affine, rank, region.wrappers, title_of(region), region.path)

    def check_sees(self, place: Place, affine: Affine, shape: Shape | None) -> None:
        """`shape` is that of the tensor that the map is of, inside all wrappers."""
        rank = None if shape is None else len(shape)
        self._check_axes(affine, rank, place.call.wrappers, place.title, place.call.path)
        if shape is not None and not affine.fits(shape):
            raise place.refuse("has a tensor of another size than what is normalized")

    def _check_axes(
        self, affine: Affine, rank: int | None, wrappers: int, name: str, path: LayerPath
    ) -> None:
        """A layer in a TimeDistributed does not see the axes that the wrapper adds."""
        axes = affine.varies_on
        if not axes or (rank is None and (not wrappers or axes == {-1})):
            return
        if rank is None or min(axes) <= -rank:
            raise Refusal(
                f"it normalizes axis {self.axis}, which is not the channel axis of "
                f"{name}, nor one that it sees",
                at=path,
            )

    def check_dtype(self, place: Place) -> None:
        """A layer that computes in another dtype would round, or hand on, another one."""
        call = place.call
        if call.outer.is_operation:
            found = {value.dtype for value in call.reads}
        else:
            policies = [policy(part) for part in chain(call.outer)]
            if None in policies:
                raise place.refuse(QUANTIZED)
            found = {one.compute for one in policies if one is not None}
        if found - {self.dtype}:
            raise place.refuse("computes in another dtype")

    def site(self, place: Place) -> Site:
        """What a rule is asked about; all that holds for any rule is checked here."""
        self.check_dtype(place)
        if inbound_nodes.mixes_constants(place.call.written.node):
            raise place.refuse("reads constants beside tensors")
        return self.state.site(place.call)

    # --- what may absorb a map --------------------------------------------------------------------

    def demand_after(self, place: Place, affine: Affine) -> Demand:
        """What a map of its output asks of a layer."""
        rule = rule_of(place.call.layer)
        absorb = self.absorber(place, None if rule is None else rule.absorb_after)
        site = self.site(place)
        self.check_sees(place, affine, site.output)
        return self.demand(absorb, site, place, affine)

    def absorber(self, place: Place, absorb: Absorb | None) -> Absorb:
        """How a layer absorbs a map, if it may be changed."""
        call = place.call
        if call.outer.is_operation:
            raise place.refuse(NO_OPERATION)
        if not call.outer.builtin:
            raise place.refuse(f"is of a class that is not Keras' own{_evidence(call.outer)}")
        if self.state.keeps(call.path):
            raise place.refuse("is kept on request")
        if call.region.repeats(call.outer):
            raise place.refuse("stands in several places of the model")
        if absorb is None:
            raise place.refuse(NO_LAYER)
        if layers.is_batchnorm(call.layer) and call.path == self.one.path:
            raise Refusal("it feeds itself", at=call.path)
        if layers.is_batchnorm(call.layer) and not self.into_batchnorms:
            raise place.refuse("stays")
        return absorb

    def demand(self, absorb: Absorb, site: Site, place: Place, affine: Affine) -> Demand:
        """What a layer has to absorb."""
        try:
            edit = absorb(site, affine)
            check_bias_axis(site, edit)
        except Refusal as refusal:
            raise self._said_of(place, refusal) from None
        return Demand(place, affine, edit)

    def _said_of(self, place: Place, refusal: Refusal) -> Refusal:
        if not refusal.about_axis:
            return place.refuse(refusal, advise=self.advises(place))
        what = f"it normalizes axis {self.axis}, which"
        if not place.touches(self.one.layer):
            what = "what it normalizes"
        return Refusal(f"{what} is {refusal.reason} {place.name}", at=place.call.path)

    # --- advice -----------------------------------------------------------------------------------

    def advises(self, place: Place) -> bool:
        """Whether the remedy of a layer that cannot absorb the map would help."""
        return True

    def works(self, attempt: Callable[[], object]) -> bool:
        """Whether something could be done without a refusal; not asked while asking."""
        if self._is_asking:
            return False
        self._is_asking, first = True, self.first
        try:
            return attempt() is not None
        except Refusal:
            return False
        finally:
            self._is_asking, self.first = False, first


def typical_map(size: int, shape: tuple[int, ...]) -> Affine:
    """A map as training might leave it: scales of both signs, and a shift."""
    return Affine(np.linspace(-1, 2, size).reshape(shape), np.linspace(1, 2, size).reshape(shape))


def title_of(region: Region) -> str:
    """A nested model as sentences name it."""
    kind = "Sequential" if region.graph.kind == "sequential" else "Functional"
    return f"{kind} {show(region.path)!r}"


def _evidence(layer: Layer) -> str:
    """What tells that a class is not Keras' own, where that is a setting."""
    foreign = foreign_settings(layer.entry)
    return f": Keras' has no setting {printable(foreign[0])!r}" if foreign else ""
