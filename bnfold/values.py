"""`dataclass`, as Python has it, in a fiftieth of the time.

That of the standard library writes six functions for each class as text and compiles them: half a
millisecond, and a command needs a hundred classes before it does anything. Here Python's own finds
the fields, and what works alike for all classes is not written anew for each. `__init__` is, as
fast as Python's, when the first object is made or somebody asks for the signature.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from reprlib import recursive_repr

TYPE_CHECKING = False  # that of `typing` costs the import of `typing`
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - handed on
    from inspect import Signature
    from typing import Any


def _dataclass(
    cls: type | None = None,
    /,
    *,
    frozen: bool = False,
    eq: bool = True,
    repr: bool = True,  # noqa: A002 - as Python calls it
    kw_only: bool = False,
) -> Any:
    """Make a class one of values; what it has of methods stays."""

    def made(cls: type) -> type:
        own = set(vars(cls))
        cls.__doc__ = cls.__doc__ or cls.__name__  # for which Python would ask for the signature
        find(cls)
        fields = dataclasses.fields(cls)
        new: dict[str, Any] = {"__init__": _provisional(cls, frozen=frozen)}
        if repr:
            new["__repr__"] = _repr([one.name for one in fields if one.repr])
        if eq:
            new |= _comparison([one.name for one in fields if one.compare], frozen=frozen)
        if frozen:
            new |= _refusals(cls, {one.name for one in fields})
        for name in new.keys() - own:
            setattr(cls, name, new[name])
        if "__init__" not in own:
            vars_of: Any = cls
            vars_of.__signature__ = _Signature()
        return cls

    find = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)
    return made if cls is None else made(cls)


if not TYPE_CHECKING:
    dataclass = _dataclass


def _provisional(cls: type, *, frozen: bool) -> Callable[..., None]:
    """What writes the `__init__` of a class when it is called first."""

    def __init__(self: object, /, *values: Any, **more: Any) -> None:  # noqa: N807
        complete()(self, *values, **more)

    def complete() -> Callable[..., None]:
        found: Any = cls
        found.__init__ = _init(cls, frozen=frozen)
        return found.__init__  # type: ignore[no-any-return]

    __init__.complete = complete  # type: ignore[attr-defined]
    return __init__


def _init(cls: type, *, frozen: bool) -> Callable[..., None]:
    """The `__init__` of a class, which sets all fields."""
    known: dict[str, Any] = {"_set": object.__setattr__, "_factory": _FACTORY}
    known["__name__"] = cls.__module__
    parameters: dict[bool, list[str]] = {False: [], True: []}
    lines = []
    fields = dataclasses.fields(cls)
    for one in fields:
        name = value = parameter = one.name
        if one.default_factory is not dataclasses.MISSING:
            known[f"_make_{name}"] = one.default_factory
            value = f"_make_{name}()" + (f" if {name} is _factory else {name}" if one.init else "")
            parameter = f"{name}=_factory"
        elif one.default is not dataclasses.MISSING:
            known[f"_default_{name}"] = one.default
            parameter = f"{name}=_default_{name}"
        if one.init:
            parameters[bool(one.kw_only)].append(parameter)
        if one.init or value != name:  # else its default is there already, as the class's
            lines.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    by_keyword = ["*", *parameters[True]] if parameters[True] else []
    head = ", ".join(["self", *parameters[False], *by_keyword])
    exec("\n ".join([f"def __init__({head}):", *lines, "pass"]), known)  # noqa: S102
    made: Any = known["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__annotations__ = {one.name: one.type for one in fields if one.init} | {"return": None}
    return made  # type: ignore[no-any-return]


class _Factory:
    """Stands for a default that is made for each object."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


class _Signature:
    """The signature of a class, for whoever looks at it before there is an object."""

    def __get__(self, instance: object, cls: type) -> Signature:
        from inspect import signature  # noqa: PLC0415 - hardly ever needed

        if instance is not None:
            raise AttributeError("__signature__")
        whole = signature(cls.__init__)  # type: ignore[misc]
        if hasattr(cls.__init__, "complete"):  # type: ignore[misc]
            whole = signature(cls.__init__.complete())  # type: ignore[misc]
        _, *parameters = whole.parameters.values()
        return whole.replace(parameters=parameters)


def _repr(names: Sequence[str]) -> Callable[[Any], str]:
    @recursive_repr("...")
    def __repr__(self: object) -> str:  # noqa: N807
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({values})"

    return __repr__


def _comparison(names: Sequence[str], *, frozen: bool) -> dict[str, Any]:
    """Equality by values; and a hash, where these stay."""
    get = attrgetter(*names) if names else lambda _: ()
    values = get if len(names) != 1 else lambda one: (get(one),)

    def __eq__(self: object, other: object) -> Any:  # noqa: N807
        return (
            values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented
        )

    def __hash__(self: object) -> int:  # noqa: N807
        return hash(values(self))

    return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}


def _refusals(cls: Any, names: set[str]) -> dict[str, Any]:
    """What refuses changes; a class that is made of this one may have attributes of its own."""

    def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: object, name: str) -> None:  # noqa: N807
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return {"__setattr__": __setattr__, "__delattr__": __delattr__}
