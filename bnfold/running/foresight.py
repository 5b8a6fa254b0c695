"""What can be seen to be wrong before TensorFlow is loaded, which takes many seconds.

Where a model's file does not say what goes into it, nothing is refused for that here: the loaded
model is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.running import data as user_data
from bnfold.running import libraries, samples
from bnfold.running.data import Given, Source
from bnfold.running.safety import FileFacts


def look(facts: FileFacts, imports: Sequence[str], data: Source | None) -> Given | None:
    """Look at the modules that the user names and at the data; the data, read.

    Raises BnfoldError for a module that is not there, for data that are unreadable or do not fit
    the inputs of the model, and for no data where the inputs are texts, which cannot be drawn.
    """
    for name in imports:
        libraries.find_module(name)
    if data is None:
        samples.refuse_text(facts.specs)
        return None
    given = user_data.read(data)
    if facts.specs:
        user_data.refuse_few(user_data.open_data(given, facts.specs))
    return given
