"""The pairs that a trainer keeps."""

import numpy as np
import pytest

from mpiserve.learning.reservoir import Reservoir, count


def rows(begin, end):
    numbers = np.arange(begin, end)
    return {"inputs/x": np.stack([numbers, -numbers], 1), "outputs/y": 2 * numbers}


def made(most=64, held_out=0.25, new_share=0.5):
    return Reservoir(rows(0, 0), most, held_out, new_share, seed=1)


def numbers_of(found):
    assert (found["inputs/x"][:, 1] == -found["inputs/x"][:, 0]).all(), "a row stays together"
    assert (found["outputs/y"] == 2 * found["inputs/x"][:, 0]).all()
    return found["inputs/x"][:, 0].tolist()


def test_all_pairs_are_there_while_there_is_room_and_none_is_both_trained_with_and_held_out():
    reservoir = made(most=1000)
    for begin in range(0, 300, 7):
        reservoir.add(rows(begin, min(begin + 7, 300)))
    drawn, held = numbers_of(reservoir.all()), numbers_of(reservoir.held.there())
    assert sorted(drawn + held) == list(range(300))
    assert reservoir.seen == 300 and reservoir.rows == len(drawn)
    assert 40 < len(held) < 110
    assert set(numbers_of(reservoir.draw(500))) <= set(drawn)


def test_memory_is_bounded_and_half_of_it_has_the_newest():
    reservoir = made()
    for begin in range(0, 20_000, 50):
        reservoir.add(rows(begin, begin + 50))
    assert reservoir.rows == 64 and reservoir.seen == 20_000
    assert count(reservoir.held.there()) == 16
    newest = numbers_of(reservoir.newest(32))
    assert newest == sorted(newest) and newest[0] > 19_900
    assert numbers_of(reservoir.newest(3)) == newest[-3:]
    kept = sorted(set(numbers_of(reservoir.all())) - set(newest))
    assert len(kept) == 32
    assert kept[0] < 4000 and 5000 < np.mean(kept) < 15_000, "of all times, not of the last alone"


def test_what_was_long_ago_is_drawn_as_often_as_the_share_says():
    reservoir = made(new_share=0.75)
    reservoir.add(rows(0, 5000))
    newest = numbers_of(reservoir.newest(32))
    drawn = np.array(numbers_of(reservoir.draw(400)))
    assert np.isin(drawn, newest).sum() == 300


@pytest.mark.parametrize("added", [0, 5, 63, 64, 65, 700])
def test_a_reservoir_that_is_read_from_the_disk_goes_on_as_the_first_would(added):
    first, second = made(), made()
    first.add(rows(0, added))
    second.add(rows(7000, 7100))
    second.restore(first.saved())
    for reservoir in (first, second):
        reservoir.add(rows(added, added + 90))
    assert first.seen == second.seen
    assert sorted(numbers_of(first.all())) == sorted(numbers_of(second.all()))
    assert numbers_of(first.newest(20)) == numbers_of(second.newest(20))
    assert numbers_of(first.held.there()) == numbers_of(second.held.there())


def test_a_smaller_reservoir_takes_the_newest_of_a_larger_one():
    large, small = made(most=400), made(most=20)
    large.add(rows(0, 300))
    small.restore(large.saved())
    assert small.rows == 20
    assert numbers_of(small.newest(10)) == numbers_of(large.newest(10))
