"""The health rules, one function each, in files by what they look at; each registers itself.

Every file in this folder is imported, so that a new rule is a function here, its page in
`bnfold/audit/pages`, and no line elsewhere.
"""

from importlib import import_module
from pathlib import Path

for _file in sorted(Path(__file__).parent.glob("[!_]*.py")):
    import_module(f"{__name__}.{_file.stem}")
