"""Writes the table of all layers in folding.md, from the rows that the code itself asks.

python docs/layer_table.py
"""

import re
from itertools import groupby
from pathlib import Path

from bnfold.folding.rule import Rule
from bnfold.folding.rules import rule_of
from bnfold.model.graph import Layer
from bnfold.model.layers import ROWS, Facts

PAGE = Path(__file__).parent / "folding.md"
BEGIN, END = "<!-- written by docs/layer_table.py -->\n\n", "\n<!-- end -->\n"

_MASKS = {"passes": "goes on", "drops": "ends", "reads": "may be read", "makes": "may begin"}


def page() -> str:
    """The page with the table as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def table() -> str:
    """A line for all classes with the same answers; those at which every map ends are left out."""
    answers = {name: _answers(name, row) for name, row in ROWS.items()}
    known = {name: cells for name, cells in answers.items() if "yes" in cells}
    lines = [
        ("layer", "absorbs a map after it", "before it", "lets one cross", "a mask", "training"),
        ("---",) * 6,
    ]
    for kind in dict.fromkeys(known.values()):
        names = [name for name in known if known[name] == kind]
        lines.append((_compact(names), *kind))
    return "".join(re.sub(" +", " ", f"| {' | '.join(line)} |") + "\n" for line in lines)


def _answers(name: str, row: Facts) -> tuple[str, ...]:
    rule = rule_of(Layer(name, name, {}, {})) or Rule()
    asked = (rule.absorb_after, rule.absorb_before, rule.backward)
    default = {True: "on by default", False: "off by default", None: ""}[row.training_default]
    training = "the same" if row.training == "same" else default or "other"
    return (*("yes" if one else "" for one in asked), _MASKS.get(row.mask or "", ""), training)


def _compact(names: list[str]) -> str:
    """`Conv1D, Conv2D` as `Conv{1,2}D`."""
    cells = []
    for stem, found in groupby(names, lambda name: re.sub(r"[123](?=D)", "#", name)):
        numbers = [re.search(r"[123](?=D)", name) for name in found]
        some = ",".join(number[0] for number in numbers if number is not None)
        cells.append(stem.replace("#", f"{{{some}}}" if "," in some else some))
    return ", ".join(cells)


if __name__ == "__main__":
    PAGE.write_text(page())
