"""Models drawn from the whole catalogue, folded, and compared with the original in plain Keras.

A second oracle says of each what its folds may not have done, by the rules and not by the code.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from drawing import Drawn, models
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from oracle import violations
from support import examine, load, outputs, samples

from bnfold.folding.plan import Plan, plan
from bnfold.model.container import open_model
from bnfold.model.graph import show

RANDOM = ("Dropout", "Noise")


def check(drawn: Drawn) -> Plan:
    """Fold the model; it computes the same, no rule is broken, and nothing is left to fold."""
    code = "\n".join(drawn.code)
    bare = "training=True" in code or "CenterCrop" in code or "Resizing" in code
    with TemporaryDirectory() as folder:
        planned = examine(
            drawn.model,
            Path(folder),
            left=None,
            forms=[drawn.form],
            allowed=1e-9 if drawn.dtype == "float64" else 2e-3,
            bare=bare and not any(word in code for word in RANDOM),
        )
        source, target = (Path(folder, f"{name}{drawn.form}") for name in ("original", "folded"))
        assert violations(load(source), load(target), _report(planned)) == []
        with open_model(target) as file:
            assert not plan(file.graph).folds
    return planned


def _report(planned: Plan) -> list[dict]:
    return [
        {
            "name": show(fold.batchnorm.path),
            "direction": fold.direction,
            "into": [show(edit.layer) for edit in fold.edits],
        }
        for fold in planned.folds
    ]


def runs(drawn: Drawn) -> bool:
    """Whether Keras can run its own model: some shapes that it infers are wrong."""
    try:
        outputs(drawn.model, samples(drawn.model), training=False)
    except Exception:
        return False
    return True


def check_many(number: int, count: int) -> None:
    """Draw and check `count` different models; the same number always draws the same ones."""
    seen: set[str] = set()

    @seed(number)
    @settings(
        max_examples=10 * count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(models(lambda: len(seen) >= count))
    def run(drawn: Drawn | None) -> None:
        if drawn is not None and repr(drawn) not in seen:
            assume(runs(drawn))
            check(drawn)
            seen.add(repr(drawn))

    run()
    assert len(seen) == count


@pytest.mark.parametrize("number", range(4))
def test_drawn_models(number: int) -> None:
    check_many(number, 75)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 120))
def test_many_drawn_models(number: int) -> None:
    check_many(number, 250)
