"""What a night is opened with: no box means no night, unless a human said so; asked-for bounds replace the profile's."""

from pathlib import Path

import pytest
from prefect import flow

from flows import opening, server
from tasks.records import BoxError, UsageError
from tests.boxes import make_profile
from tests.checkouts import Checkout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@flow
def isolation(home: Path, allowed: bool) -> str:
    return opening.choose_isolation(home, make_profile(), allowed)


def test_a_box_that_holds_is_used_even_where_none_is_allowed(tmp_path):
    assert isolation(tmp_path, True) == "bwrap"


def test_without_a_box_only_a_human_lets_the_night_go_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tasks.judge.bwrap.find_bwrap", lambda: Path("/bin/false"))
    with pytest.raises(BoxError, match="--allow-unsandboxed"):
        isolation(tmp_path, False)
    assert isolation(tmp_path, True) == "none"
    assert "NOT SANDBOXED" in caplog.text


@pytest.fixture
def header(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path)
    monkeypatch.setattr(server, "ROOT", checkout.folder)
    monkeypatch.setenv("NIGHTLY_HOME", str(checkout.home))

    @flow
    def make(**choices) -> dict:
        none = dict.fromkeys(("tag", "trials", "hours", "proposer", "patches"))
        return opening.new_header(**{**none, "profile": "laptop", "seed": 1, "allow_unsandboxed": False, **choices})

    return make


@pytest.mark.parametrize(
    ("asked", "trials", "hours"),
    [({}, 4, None), ({"trials": 7}, 7, None), ({"hours": 8.0}, None, 8.0), ({"trials": 7, "hours": 8.0}, 7, 8.0)],
)
def test_bounds_that_are_asked_for_replace_the_profiles(header, asked, trials, hours):
    made = header(**asked)
    assert (made["trials"], made["hours"]) == (trials, hours)


def test_a_proposer_that_is_not_built_is_refused_before_any_work(header):
    with pytest.raises(UsageError, match="llm"):
        header(proposer="llm")


def test_a_folder_of_patches_that_is_missing_is_said_before_any_work(header, tmp_path):
    with pytest.raises(UsageError, match="no folder of patches"):
        header(proposer="replay", patches=str(tmp_path / "nothing"))
