"""Makes terminal.svg: what the first commands of the README print.

    python docs/terminal.py

It runs them, and needs what they need.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("terminal.svg")
WIDTH = 118
COMMANDS = (
    "bnfold inspect fixtures/story/three_epochs.keras",
    "bnfold prepare fixtures/story/three_epochs.keras deploy --data fixtures/story/train.npz"
    " --test-data fixtures/story/test.npz --recalibrate auto --to onnx --to tflite",
)
FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Rich has its fonts fetched from elsewhere; those of the reader will do."""


def shown(command: str, folder: str) -> Text:
    """A command and what it prints, in colours."""
    given = command.replace(" deploy ", f" {folder}/deploy ")
    ran = subprocess.run(  # noqa: S603 - the commands above
        [sys.executable, "-m", *given.split()],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    text = Text.from_ansi(ran.stdout.rstrip().replace(f"{folder}/", ""))
    return Text.assemble(("$ ", "bold green"), (command, "bold"), "\n", text, "\n")


def main() -> None:
    """Run the commands and draw what they print."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        for command in COMMANDS:
            console.print(shown(command, folder))
    svg = console.export_svg(title="bnfold", theme=MONOKAI, unique_id="bnfold")
    PICTURE.write_text(FONT.sub("", svg))


if __name__ == "__main__":
    main()
