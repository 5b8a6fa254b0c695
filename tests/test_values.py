"""Classes of values are those that Python's own `dataclass` makes."""

import copy
import dataclasses
import inspect
import pickle
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from bnfold.values import dataclass

KINDS = {"python": dataclasses.dataclass, "bnfold": dataclass}


def both(make: Callable[[Any], Any], ask: Callable[[Any], Any]) -> None:
    """The same answer, or the same error, about a class that either of them makes."""
    found = {name: said(ask, make(kind)) for name, kind in KINDS.items()}
    assert found["bnfold"] == found["python"]


def said(ask: Callable[[Any], Any], cls: Any) -> Any:
    try:
        return ask(cls)
    except (TypeError, AttributeError) as error:
        return type(error), str(error)


def plain(kind: Any) -> Any:
    @kind
    class Plain:
        one: int
        other: list[int] = dataclasses.field(default_factory=list)
        hidden: float = dataclasses.field(default=0.5, repr=False, compare=False)
        shared: ClassVar[int] = 3

    return Plain


def frozen(kind: Any) -> Any:
    @kind(frozen=True)
    class Base:
        """One."""

        one: int
        other: str = "x"

    @kind(frozen=True)
    class Derived(Base):
        """Another one."""

        third: Any = None
        fourth: Any = dataclasses.field(default=None, kw_only=True)

        def __post_init__(self) -> None:
            if self.one < 0:
                raise TypeError("less than nothing")

    return Derived


def single(kind: Any) -> Any:
    return kind(frozen=True)(type("Single", (), {"__annotations__": {"value": float}}))


def unequal(kind: Any) -> Any:
    @kind(eq=False, repr=False, kw_only=True)
    class Unequal:
        one: int = 1
        made: dict[str, int] = dataclasses.field(default_factory=dict, init=False)
        later: int = dataclasses.field(default=4, init=False)

    return Unequal


def own(kind: Any) -> Any:
    @kind(frozen=True)
    class Own:
        one: int

        def __repr__(self) -> str:
            return "me"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    return Own


def empty(kind: Any) -> Any:
    return kind(frozen=True)(type("Empty", (), {}))


def changed(cls: Any, name: str = "one") -> None:
    setattr(cls(1), name, 2)


def below(cls: Any) -> Any:
    made = type("Below", (cls,), {})(1)
    made.new = 5
    del made.new
    return changed(type(made))


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "ask"),
    [
        (plain, lambda cls: [repr(cls(1)), repr(cls(1, [2], 3.0)), cls(1).other]),
        (plain, lambda cls: [cls(1) == cls(1, [], 9.0), cls(1) == cls(2), cls(1) == 1]),
        (plain, lambda cls: cls()),
        (plain, lambda cls: cls(1, 2, 3, 4)),
        (plain, lambda cls: cls(1, twice=2)),
        (plain, lambda cls: hash(cls(1))),
        (plain, lambda cls: cls(1).other is cls(1).other),
        (plain, lambda cls: [one.name for one in dataclasses.fields(cls)]),
        (plain, lambda cls: dataclasses.asdict(dataclasses.replace(cls(1), one=4))),
        (plain, lambda cls: repr(inspect.signature(cls))),
        (plain, lambda cls: changed(cls)),
        (frozen, lambda cls: [repr(cls(1, fourth=2)), cls(1) == cls(1), cls.__match_args__]),
        (frozen, lambda cls: [hash(cls(1)) == hash(cls(1)), hash(cls(1)) == hash((1, "x", None))]),
        (frozen, lambda cls: {cls(1), cls(1)} == {cls(1)}),
        (frozen, lambda cls: cls(1) == cls.__mro__[1](1)),
        (frozen, lambda cls: cls(-1)),
        (frozen, lambda cls: cls(1, "x", None, 4)),
        (frozen, lambda cls: changed(cls)),
        (frozen, lambda cls: changed(cls, "new")),
        (frozen, lambda cls: delattr(cls(1), "one")),
        (frozen, below),
        (frozen, lambda cls: repr(inspect.signature(cls))),
        (frozen, lambda cls: repr(copy.copy(dataclasses.replace(cls(1), third=cls(2))))),
        (frozen, lambda cls: [cls.__doc__, cls(3).one, cls.__init__.__qualname__]),
        (single, lambda cls: [repr(cls(2.0)), cls(NAN) == cls(NAN), hash(cls(1)) == hash((1,))]),
        (unequal, lambda cls: [cls() == cls(), cls(one=2).made, cls().later, cls(one=3).one]),
        (unequal, lambda cls: cls(1)),
        (unequal, lambda cls: cls(made={})),
        (own, lambda cls: [repr(cls(1)), cls(1) == cls(2), hash(cls(1))]),
        (empty, lambda cls: [repr(cls()), cls() == cls(), hash(cls())]),
    ],
)
def test_a_class_is_what_python_makes_of_it(
    make: Callable[[Any], Any], ask: Callable[[Any], Any]
) -> None:
    both(make, ask)


def test_one_that_is_in_itself_is_shown_once() -> None:
    def shown(cls: Any) -> str:
        one = cls(1)
        one.other.append(one)
        return repr(one)

    both(plain, shown)


def test_the_signature_is_that_of_the_class_that_is_asked_for() -> None:
    class Below(frozen(dataclass)):  # type: ignore[misc]
        def __init__(self, only: int) -> None:
            super().__init__(only)

    assert str(inspect.signature(Below)) == "(only: int) -> None"
    assert Below(4).one == 4
    assert not hasattr(Below(4), "__signature__")


@dataclass(frozen=True)
class Kept:
    one: int
    other: tuple[int, ...] = ()


def test_it_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Kept(1, (2,)))) == Kept(1, (2,))


def test_a_class_is_made_many_times_faster() -> None:
    def seconds(kind: Any) -> float:
        start = time.process_time()
        for _ in range(20):
            frozen(kind)
        return time.process_time() - start

    assert min(seconds(dataclass) for _ in range(3)) * 5 < seconds(dataclasses.dataclass)
