"""The order of estimates: every value that goes into a layer must be final by then."""

import numpy as np
import pytest

from bnfold.observation.schedule import Schedule, Step, dependences, levels


def chain(*units: tuple[int, ...]) -> list[Step]:
    """Steps one behind the other, from value 0."""
    return [Step((n,), (n + 1,), inside) for n, inside in enumerate(units)]


def test_layers_of_a_chain_come_one_after_the_other() -> None:
    steps = chain((), (7,), (), (8,), ())
    assert levels(dependences(steps, {7, 8})) == {7: 0, 8: 1}


def test_branches_share_a_level() -> None:
    steps = [
        Step((0,), (1,), (10,)),
        Step((1,), (2,), (11,)),
        Step((1,), (3,), (12,)),
        Step((2, 3), (4,)),
        Step((4,), (5,), (13,)),
    ]
    assert levels(dependences(steps, {10, 11, 12, 13})) == {10: 0, 11: 1, 12: 1, 13: 2}


def test_layers_inside_one_step_come_in_the_order_of_their_calls() -> None:
    steps = chain((5, 4), (6,))
    assert levels(dependences(steps, {4, 5, 6})) == {5: 0, 4: 1, 6: 2}


def test_a_layer_of_two_calls_waits_for_the_later_one() -> None:
    """Unit 1 is called on the input, and again behind unit 2."""
    steps = [Step((0,), (1,), (1,)), Step((0,), (2,), (2,)), Step((2,), (3,), (1,))]
    needs = dependences(steps, {1, 2})
    assert needs == {1: {2}, 2: set()}
    assert levels(needs) == {2: 0, 1: 1}


def test_a_layer_that_reads_its_own_output_depends_on_itself() -> None:
    assert dependences(chain((1,), (), (1,)), {1}) == {1: {1}}


def test_two_layers_can_wait_for_each_other() -> None:
    steps = [
        Step((0,), (1,), (1,)),
        Step((1,), (2,), (2,)),
        Step((0,), (3,), (2,)),
        Step((3,), (4,), (1,)),
    ]
    needs = dependences(steps, {1, 2, 3})
    assert needs[1] == needs[2] == {1, 2}


def test_what_leads_to_no_layer_is_not_run() -> None:
    steps = [Step((0,), (1,)), Step((1,), (2,), (9,)), Step((1,), (3,)), Step((2, 3), (4,))]
    schedule = Schedule(steps, {9: 0})
    assert schedule.to_run(0, {0}) == [0, 1]
    assert schedule.to_keep(0, {0, 1}) == set()


@pytest.mark.parametrize("seed", range(40))
def test_a_random_graph_is_run_right_whatever_is_kept(seed: int) -> None:
    """Values carry the set of the estimates that they rest on; a tenth of what is kept is lost."""
    generator = np.random.default_rng(seed)
    steps, values, unit = [], [0], 0
    for _ in range(25):
        reads = tuple(int(v) for v in generator.choice(values, min(len(values), 2), replace=False))
        count = int(generator.choice([0, 1, 1, 2]))
        steps.append(Step(reads, (len(values),), tuple(range(unit, unit + count))))
        values.append(len(values))
        unit += count
    needs = dependences(steps, set(range(unit)))
    level_of = levels(needs)
    schedule = Schedule(steps, level_of)
    done: set[int] = set()
    kept = {0}
    for level in range(schedule.count):
        if generator.random() < 0.3:
            kept = {0}  # no room: from the start again
        have = set(kept)
        seen: set[int] = set()
        for number in schedule.to_run(level, kept):
            step = steps[number]
            assert set(step.reads) <= have
            seen |= {u for u in step.units if level_of[u] == level and needs[u] <= done}
            if schedule.is_final(number, level):
                assert set(step.units) <= done
                have |= set(step.writes)
        assert seen == schedule.units(level)
        done |= seen
        kept = schedule.to_keep(level, have)
    assert done == set(range(unit))
