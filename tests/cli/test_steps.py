"""Progress on stderr, and how much time is left."""

import pytest

from moegraft.cli import steps


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_training_that_runs(clock, capsys):
    with steps.show_steps("steps") as on_step:
        for done in (1, 2, 3):
            clock[0] += 600.0
            on_step(done, 3)
        clock[0] += 20.0
        on_step(1, 61)
        clock[0] += 40.0
        on_step(2, 61)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "1 of 3 steps, 20 min left"
    assert told[-2:] == ["1 of 61 steps, 20 min left", "2 of 61 steps, 30 min left"]


def test_steps_of_an_earlier_call_take_no_time_of_this_one(clock, capsys):
    with steps.show_steps("steps") as on_step:
        clock[0] += 60.0
        on_step(91, 100)
    assert capsys.readouterr().err == "91 of 100 steps, 9 min left\n"
