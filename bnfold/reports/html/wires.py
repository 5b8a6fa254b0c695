"""The lines between layers, as paths of SVG, one drawing for each row of the page.

Tensors run down in lanes: one lane from the row that makes a tensor to the last row that reads it.
Beside the lanes, arrows run from each BatchNormalization that folds to the layers that take it in.
A row can be of any height: its node stands near its top, and what runs down is cut off at its end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bnfold.reports.html.rows import Row

MAX_LANES = 14
MAX_ARROWS = 6
"""What would need more lanes than this shares the last one."""
NODE = 15
"""How far below its top edge a row's node stands, in pixels."""
_WIDE, _NARROW, _MANY = 13, 8, 5
_ARROW = 9
_EDGE = 9
_BOTTOM = 9999


@dataclass(frozen=True)
class Wire:
    """The drawing of one row: where its node stands, in pixels, and three paths of SVG."""

    node: int
    tensors: str
    arrows: str
    heads: str


@dataclass(frozen=True)
class _Strand:
    """The lanes of one row: its own, those that pass it, those it reads, whether it goes on."""

    own: int
    passing: frozenset[int]
    read: frozenset[int]
    goes_on: bool


@dataclass
class _Arrows:
    """The arrows of one row by their lanes: what runs up and down from it, and what has an end."""

    up: set[int] = field(default_factory=set)
    down: set[int] = field(default_factory=set)
    tails: set[int] = field(default_factory=set)
    heads: set[int] = field(default_factory=set)


def wires(rows: Sequence[Row]) -> tuple[int, list[Wire]]:
    """The width in pixels that the drawings need, and the drawing of each row."""
    strands, arrows = list(_strands(rows)), _arrows(rows)
    lanes = 1 + max((max(s.own, *s.passing, 0) for s in strands), default=0)
    pitch = _WIDE if lanes <= _MANY else _NARROW
    used = [lane for one in arrows for lane in (*one.up, *one.down)]
    width = 2 * _EDGE + (lanes - 1) * pitch + (max(used, default=-1) + 1) * _ARROW + 8
    return width, [_draw(*pair, pitch, width) for pair in zip(strands, arrows, strict=True)]


def _strands(rows: Sequence[Row]) -> Iterator[_Strand]:
    """A row takes the first lane that it is the last to read, or else the first free one."""
    last = {place: number for number, row in enumerate(rows) for place in row.reads}
    lanes: list[set[int]] = [set() for _ in range(MAX_LANES)]
    home: dict[int, int] = {}
    for number, row in enumerate(rows):
        read = frozenset(home[place] for place in row.reads)
        for place in row.reads:
            if last[place] == number:
                lanes[home[place]].discard(place)
        free = (lane for lane in (*sorted(read), *range(MAX_LANES)) if not lanes[lane])
        own = next(free, MAX_LANES - 1)
        passing = frozenset(lane for lane, tensors in enumerate(lanes) if tensors)
        yield _Strand(own, passing, read, number in last)
        if number in last:
            lanes[own].add(number)
            home[number] = own


def _arrows(rows: Sequence[Row]) -> list[_Arrows]:
    found = [_Arrows() for _ in rows]
    ends = [-1] * MAX_ARROWS
    folds = {number: {line for _, line in row.into} for number, row in enumerate(rows) if row.into}
    for start, number in sorted((min(number, *lines), number) for number, lines in folds.items()):
        targets = folds[number]
        end = max(number, *targets)
        lane = next((lane for lane, before in enumerate(ends) if before < start), MAX_ARROWS - 1)
        ends[lane] = max(ends[lane], end)
        for place in range(start, end + 1):
            if place > start:
                found[place].up.add(lane)
            if place < end:
                found[place].down.add(lane)
        found[number].tails.add(lane)
        for target in targets:
            found[target].heads.add(lane)
    return found


def _draw(strand: _Strand, arrows: _Arrows, pitch: int, width: int) -> Wire:
    node = _EDGE + strand.own * pitch
    tensors = [f"M{_EDGE + lane * pitch} 0V{_BOTTOM}" for lane in sorted(strand.passing)]
    tensors += [_curve(_EDGE + lane * pitch, node) for lane in sorted(strand.read)]
    if strand.goes_on:
        tensors.append(f"M{node} {NODE}V{_BOTTOM}")
    right = width - 2

    def at(lane: int) -> int:
        return width - 9 - lane * _ARROW

    lines = [f"M{at(lane)} 0V{NODE}" for lane in sorted(arrows.up)]
    lines += [f"M{at(lane)} {NODE}V{_BOTTOM}" for lane in sorted(arrows.down)]
    lines += [f"M{at(lane)} {NODE}H{right}" for lane in sorted(arrows.tails | arrows.heads)]
    heads = f"M{right - 5} {NODE - 4}L{right + 1} {NODE}L{right - 5} {NODE + 4}z"
    return Wire(node, "".join(tensors), "".join(lines), heads if arrows.heads else "")


def _curve(start: int, end: int) -> str:
    """From a lane at the top edge of the row to its node."""
    if start == end:
        return f"M{start} 0V{NODE}"
    return f"M{start} 0C{start} {NODE - 5} {end} 3 {end} {NODE}"
