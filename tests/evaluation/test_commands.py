"""Every command refuses a hostile file in one line that names it, and leaves nothing.

All files take a quarter of an hour: `python tests/evaluation/commands.py`. Here is one that every
command refuses before it imports a framework.
"""

from dataclasses import replace
from pathlib import Path

import attacks
import commands
import pytest
from tiers import some


@pytest.mark.keras  # installed: commands look for it before they read a file
@pytest.mark.parametrize("name", some(commands.COMMANDS, 3))  # each is a whole process
@pytest.mark.few(2)
def test_a_command_refuses_a_bomb(name: str, tmp_path: Path) -> None:
    ended = commands.run(name, attacks.doubled(tmp_path))
    assert ended.code == 2
    assert list(commands.faults(name, ended, tmp_path / "model.keras")) == []


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "model.keras"
    file.touch()
    good = commands.Ended(2, 1.0, 1 << 20, "bnfold: a ...\nbnfold: model.keras: no\n", "", ["err"])
    assert list(commands.faults("fold", good, file)) == []
    two = replace(good, error="bnfold: good.keras and model.keras: took more than 240 s\n")
    assert list(commands.faults("verify, the second", two, file)) == []
    for wrong in (
        replace(good, code=-11),
        replace(good, error=good.error + "more\n"),
        replace(good, error="bnfold: no\n"),
        replace(good, output="Traceback"),
        replace(good, error="bnfold: model.keras: internal error\n"),
        replace(good, made=["here/.bnfold-1/OUT.keras"]),
        replace(good, made=["here/OUT.keras"]),
        replace(good, memory=6 << 30),
    ):
        assert len(list(commands.faults("fold", wrong, file))) == 1, wrong
    assert list(commands.faults("inspect", replace(good, memory=600 << 20), file))
    assert list(commands.faults("inspect", replace(good, seconds=20.0), file))
