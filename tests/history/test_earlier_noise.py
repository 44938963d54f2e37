"""What a new night finds of earlier nights' repeats."""

import dataclasses
import json

import pytest

from tasks.errors import DataError
from tasks.history import earlier_noise
from tasks.records import BaselineEvent
from tests.trials import make_baseline, make_state

FACTS = {"dataset": "d5", "budget": "300 s", "train.py": "ab"}
REPEATS = ((1.7, 1.8), (1.64, 1.65, 1.66))


def night(tag="nov19", repeats=REPEATS, hour=4, **baseline):
    *groups, champion = repeats
    return make_state(
        header={"tag": tag},
        baseline=make_baseline(**{"facts": FACTS, "parameters": 500_000, **baseline}),
        groups=tuple(groups),
        champion_repeats=champion,
        updated=f"2026-11-22T{hour:02}:00:00+00:00",
    )


def find(home, hardware="a CPU", facts=FACTS, parameters=500_000):
    return earlier_noise.find(home, "nov20", hardware, facts, parameters)


def test_a_night_finds_the_repeats_of_those_before_the_latest_first(tmp_path):
    for tag, hour in (("nov18", 3), ("nov20", 5), ("nov19", 4)):
        earlier_noise.record(tmp_path, night(tag, hour=hour))
    found, problems = find(tmp_path)
    assert (list(found.items()), problems) == ([("nov19", REPEATS), ("nov18", REPEATS)], [])
    event = json.loads(json.dumps(dataclasses.asdict(make_baseline(earlier_repeats=found))))
    assert BaselineEvent.from_json(event).earlier_repeats == found


def test_a_night_counts_once_however_often_it_is_recorded(tmp_path):
    earlier_noise.record(tmp_path, night(repeats=REPEATS[:1]))
    earlier_noise.record(tmp_path, night())
    earlier_noise.record(tmp_path, night())
    assert find(tmp_path)[0] == {"nov19": REPEATS}
    assert len(list((tmp_path / "data" / "noise").iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({"facts": {**FACTS, "train.py": "cd"}}, True),
        ({"parameters": 990_000}, True),
        ({"parameters": 1_010_000}, False),
        ({"parameters": 240_000}, False),
        ({"parameters": None}, True),
        ({"hardware": "another CPU"}, False),
        ({"facts": {**FACTS, "budget": "60 s"}}, False),
        ({"facts": {**FACTS, "a kernel": "ab"}}, False),
    ],
)
def test_only_nights_that_measured_the_same_are_found(tmp_path, changes, alike):
    earlier_noise.record(tmp_path, night())
    assert (find(tmp_path, **changes)[0] == {"nov19": REPEATS}) == alike


def test_a_night_without_repeats_is_none(tmp_path):
    earlier_noise.record(tmp_path, night(repeats=((1.6,),)))
    earlier_noise.record(tmp_path, make_state(baseline=None, champion_scores=()))
    assert find(tmp_path) == ({}, [])


def test_enough_nights_are_enough(tmp_path):
    for hour in range(10):
        earlier_noise.record(tmp_path, night(f"n{hour}", (tuple(range(30)),), hour))
    assert list(find(tmp_path)[0]) == ["n9", "n8", "n7", "n6"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "\xff", '{"repeats": 3}', '{"repeats": [["x"]]}', '{"repeats": [[NaN, 1]]}'],
)
def test_a_damaged_file_costs_a_warning_and_no_other_night(tmp_path, text):
    for tag in ("nov18", "nov19"):
        earlier_noise.record(tmp_path, night(tag))
    path = tmp_path / "data" / "noise" / "nov19.json"
    path.write_text(text, encoding="latin-1")
    found, problems = find(tmp_path)
    assert list(found) == ["nov18"]
    (said,) = problems
    assert said.startswith(f"{path} cannot be read (")
    assert said.endswith("`./run rebuild nov19` writes it again")
    earlier_noise.record(tmp_path, night("nov19"))
    assert len(find(tmp_path)[0]) == 2


def test_a_disk_that_takes_no_file_says_so(tmp_path):
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write"):
        earlier_noise.record(tmp_path, night())


def test_of_a_profile_what_is_like_its_latest_night_is_known(tmp_path):
    earlier_noise.record(tmp_path, night("nov17", hour=1))
    earlier_noise.record(tmp_path, night("nov18", hour=2, facts={**FACTS, "dataset": "e6"}))
    earlier_noise.record(tmp_path, night("nov19", hour=3))
    given = (tmp_path, "laptop", "a CPU", {"budget": "300 s"})
    nights, problems = earlier_noise.known(*given)
    assert ([entry.tag for entry in nights], problems) == (["nov19", "nov17"], [])
    assert earlier_noise.known(*given[:3], {"budget": "60 s"}) == ([], [])
