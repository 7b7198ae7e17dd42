"""Where the time goes: every second has one part, over restarts and kills."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.runtime import goodput
from ehrwear_jax.runtime.goodput import Goodput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def spend(clock, seconds):
    clock.now += seconds


def test_nested_parts_a_kill_and_a_restart(tmp_path):
    clock = Clock()
    good = Goodput(tmp_path, clock=clock)
    spend(clock, 5)  # starting
    good.resumed(0)
    good.turn("other")
    for part, seconds in (("compiling", 20), ("step", 10)):
        with good.part(part):
            spend(clock, seconds)
    with good.part("validating"):
        spend(clock, 1)
        with good.part("data"):
            spend(clock, 2)
        spend(clock, 1)
    good.saved(10)
    good.write()
    with good.part("step"):
        spend(clock, 7)
    good.write()
    spend(clock, 30)  # killed here, and started again
    good = Goodput(tmp_path, clock=clock)
    spend(clock, 3)
    good.resumed(10)  # 7 seconds of steps are done again
    good.turn("other")
    with good.part("step"):
        spend(clock, 8)
    good.write()
    seconds, starts = goodput.read(tmp_path)
    want = {"step": 18, "data": 2, "compiling": 20, "validating": 2, "starting": 8, "lost": 7, "down": 30}
    assert starts == 2 and {k: v for k, v in seconds.items() if v} == pytest.approx(want)
    assert sum(seconds.values()) == pytest.approx(clock.now - 1000)
    assert goodput.sentence(seconds, starts) == (
        "goodput 21% of 1.4 min over 2 starts: down 34%, compiling 23%, starting 9%, lost 8%, validating 2%, data 2%"
    )
    good.resumed(0)  # no checkpoint was whole
    assert good.seconds["step"] == 0 and good.seconds["lost"] == pytest.approx(25)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(goodput.PARTS), st.floats(0, 100)), max_size=20))
def test_shares_add_up_to_one(tmp_path_factory, spent):
    clock = Clock()
    good = Goodput(tmp_path_factory.mktemp("run"), clock=clock)
    for part, seconds in spent:
        with good.part(part):
            spend(clock, seconds)
    shares = good.shares()
    assert not shares or sum(shares.values()) == pytest.approx(1.0)


def test_a_torn_file_begins_anew_and_another_process_writes_none(tmp_path):
    (tmp_path / goodput.NAME).write_text('{"seconds"')
    assert Goodput(tmp_path).starts == 1
    other = Goodput(tmp_path / "other", writes=False)
    other.write()
    assert not (tmp_path / "other").exists() and goodput.read(tmp_path / "other") == (None, 0)
    (tmp_path / goodput.NAME).write_text(json.dumps({"seconds": {}, "starts": 4, "at_save": {}, "written": 0.0}))
    assert Goodput(tmp_path).starts == 5


def test_device_seconds_count_each_start_with_its_devices_and_no_time_between(tmp_path):
    clock = Clock()
    for kind, count, seconds in (("A", 8, 10), ("A", 4, 5), ("B", 2, 7)):
        good = Goodput(tmp_path, clock=clock, devices=(kind, count))
        with good.part("step"):
            spend(clock, seconds)
        good.write()
        spend(clock, 100)  # down
    found = json.loads((tmp_path / goodput.NAME).read_text())["devices"]
    assert found == {"A": {"count": 4, "seconds": pytest.approx(100)}, "B": {"count": 2, "seconds": pytest.approx(14)}}
    unknown = Goodput(tmp_path, clock=clock)  # what is not known adds nothing, and forgets nothing
    spend(clock, 50)
    unknown.write()
    assert json.loads((tmp_path / goodput.NAME).read_text())["devices"] == found


@pytest.mark.parametrize("seconds, text", [(12.4, "12 s"), (90, "1.5 min"), (7200, "2.0 h"), (2 * 86400, "2.0 days")])
def test_durations(seconds, text):
    assert goodput.duration(seconds) == text
