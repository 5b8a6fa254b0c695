"""The options of everything that runs models, checked once for whoever gives them.

The command line gives parsed words, Python gives anything. A value of a kind that an option never
has is a TypeError, one that is out of range a SettingsError; both name the option.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from bnfold.errors import SettingsError

if TYPE_CHECKING:
    from bnfold.running.data import Source


def checked(options: object, **values: Any) -> None:
    """Put values that were checked into a frozen dataclass while it is made."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def whole(name: str, value: Any, *, least: int = 0) -> int:
    """A whole number, not below `least`; one of numpy's will do."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {_shown(value)}")
    if number < least:
        raise SettingsError(f"{name} must be at least {least}, not {number}")
    return number


def wholes(name: str, values: Any, *, least: int = 0) -> tuple[int, ...]:
    """Whole numbers, also where one was given in place of a list."""
    listed = values if isinstance(values, Iterable) else [values]
    return tuple(whole(name, value, least=least) for value in listed)


def finite(name: str, value: Any, *, positive: bool = False) -> float:
    """A number that is neither NaN nor infinite, not below 0, and not 0 where it is `positive`."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {_shown(value)}")
    number = float(value)
    if not (math.isfinite(number) and number >= 0 and (number > 0 or not positive)):
        wanted = "more than 0" if positive else "at least 0"
        raise SettingsError(f"{name} must be finite and {wanted}, not {number}")
    return number


def optional(check: Callable[..., Any], name: str, value: Any, **limits: Any) -> Any:
    """What `check` makes of a value; None for None."""
    return None if value is None else check(name, value, **limits)


def flag(name: str, value: Any) -> bool:
    """True or False itself: the text "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {_shown(value)}")
    return value


def names(name: str, values: Any) -> tuple[str, ...]:
    """Names or patterns, none of them empty; also where one was given in place of a list."""
    listed = [values] if isinstance(values, str) else values
    if not isinstance(listed, Iterable) or isinstance(listed, (bytes, bytearray)):
        raise TypeError(f"{name} must be names, not {_shown(values)}")
    found = tuple(listed)
    for one in found:
        if not isinstance(one, str):
            raise TypeError(f"{name} must be names, not {_shown(one)}")
        if not one:
            raise SettingsError(f"{name} has an empty name")
    return found


def some_of(name: str, values: Any, known: Sequence[str]) -> tuple[str, ...]:
    """Names that are all among those that are known."""
    found = names(name, values)
    for one in found:
        if one not in known:
            raise SettingsError(f"{name}: there is no {one!r}; there are {', '.join(known)}")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


@dataclass(frozen=True)
class Loading:
    """How model files are loaded.

    Attributes:
        trust: let the files run code of their own, such as Lambda layers.
        imports: modules to import first, because they register custom layers.
        classes: custom layers themselves, by name.
        registered: where the process that this one works for defines what it has registered with
            Keras: see `bnfold.running.registered.places`.
    """

    trust: bool = False
    imports: Sequence[str] = ()
    classes: Mapping[str, Any] = field(default_factory=dict)
    registered: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """See that every value means something. Raises SettingsError and TypeError."""
        checked(self, trust=flag("trust", self.trust), imports=names("imports", self.imports))


@dataclass(frozen=True)
class Samples:
    """What models are run on.

    Attributes:
        data: the user's samples, in an .npz or .npy file or as arrays; None to draw random ones.
        seed: the seed of whatever is drawn.
    """

    data: Source | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """See that every value means something. Raises SettingsError and TypeError."""
        checked(self, seed=whole("seed", self.seed))


@dataclass(frozen=True)
class Tolerance:
    """How much error the user allows; where neither is given, the tolerance is measured.

    Attributes:
        rtol: relative to each channel's magnitude.
        atol: absolute.
    """

    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        """See that every value means something. Raises SettingsError and TypeError."""
        given = {"rtol": self.rtol, "atol": self.atol}
        checked(self, **{name: optional(finite, name, value) for name, value in given.items()})

    @property
    def is_given(self) -> bool:
        """Whether the user said what is allowed."""
        return self.rtol is not None or self.atol is not None


@dataclass(frozen=True)
class Bounds:
    """What is asked of the figures of a verification, beside its verdict.

    Attributes:
        min_sqnr: the least signal-to-quantization-noise ratio of every output, in dB.
        max_changed: how many decisions of a classifier may differ: a whole number, or a text such
            as "0.5%" for a share of them.
    """

    min_sqnr: float | None = None
    max_changed: int | str | None = None

    def __post_init__(self) -> None:
        """See that every value means something. Raises SettingsError and TypeError."""
        checked(self, min_sqnr=optional(finite, "min_sqnr", self.min_sqnr))
        if isinstance(self.max_changed, str):
            self.allowed(1)
        else:
            checked(self, max_changed=optional(whole, "max_changed", self.max_changed))

    def allowed(self, count: int) -> float:
        """How many of so many decisions may differ. Raises SettingsError."""
        if not isinstance(self.max_changed, str):
            return math.inf if self.max_changed is None else self.max_changed
        text = self.max_changed.strip()
        try:
            share = float(text.removesuffix("%")) if text.endswith("%") else None
            if share is None:
                return whole("max_changed", int(text))
        except ValueError:
            share = None
        if share is None or not 0 <= share <= 100:
            raise SettingsError(
                f"max_changed must be a whole number or a share such as 0.5%, not {text!r}"
            )
        return count * share / 100


UNBOUNDED = Bounds()
SAFELY, RANDOM, MEASURED = Loading(), Samples(), Tolerance()
"""The defaults: no code of the files' own, random samples, and a tolerance that is measured."""
