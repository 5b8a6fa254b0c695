"""The health rules, one function each, in files by what they look at; each registers itself.

Every file in this folder is imported, so that a new rule is a function here, its page in
`bnfold/audit/pages`, and no line elsewhere.
"""

import os
from importlib import import_module

for _file in sorted(os.listdir(os.path.dirname(__file__))):  # glob would compile a pattern
    if _file.endswith(".py") and not _file.startswith("_"):
        import_module(f"{__name__}.{_file.removesuffix('.py')}")
