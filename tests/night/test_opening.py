"""What a night is opened with: no box means no night, unless a human said so; asked-for bounds
replace the profile's."""

from pathlib import Path

import pytest
from prefect import flow

import configs
from flows import state_home
from flows.night import isolation, night, opening
from tasks.errors import BoxError, UsageError
from tasks.proposers.command import CommandProposer
from tasks.records import NightHeader
from tasks.trial import device_readiness
from tests.boxes import make_profile
from tests.checkouts import Checkout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@flow
def chosen(home: Path, wanted: str, allowed: bool = False) -> str:
    return isolation.choose_isolation(home, make_profile(isolation=wanted), allowed)


@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize("allowed", [False, True])
def test_a_bubblewrap_box_that_holds_comes_first(tmp_path, allowed):
    assert chosen(tmp_path, "auto", allowed) == "bwrap"


@pytest.mark.usefixtures("without_bwrap", "docker")
@pytest.mark.parametrize("allowed", [False, True])
def test_a_container_comes_next_by_a_fake_docker(tmp_path, allowed):
    assert chosen(tmp_path, "auto", allowed) == "docker"


@pytest.mark.usefixtures("docker")
def test_a_container_is_used_where_the_profile_names_it_by_a_fake_docker(tmp_path):
    assert chosen(tmp_path, "docker") == "docker"


@pytest.mark.usefixtures("without_bwrap", "docker")
def test_no_container_is_used_where_the_profile_names_bubblewrap(tmp_path):
    with pytest.raises(BoxError, match="bwrap: the box did not start"):
        chosen(tmp_path, "bwrap")


@pytest.mark.usefixtures("no_engine")
def test_docker_by_name_without_an_engine_is_said_with_the_remedy(tmp_path):
    with pytest.raises(BoxError, match=r"no docker engine answers.*`docker info` must work"):
        chosen(tmp_path, "docker")


@pytest.mark.usefixtures("without_bwrap", "no_engine")
def test_without_a_box_only_a_human_lets_the_night_go_on(tmp_path, caplog):
    with pytest.raises(BoxError, match="--allow-unsandboxed"):
        chosen(tmp_path, "auto")
    assert chosen(tmp_path, "auto", True) == "none"
    assert "NOT SANDBOXED" in caplog.text


def test_a_profile_for_an_apple_gpu_is_refused_on_linux(tmp_path):
    with pytest.raises(UsageError, match=r"profile mps needs an Apple GPU .* choose another"):
        isolation.choose_isolation(tmp_path, configs.load("mps"), allow_unsandboxed=True)


@flow
def try_gpu(home: Path, profile: configs.Profile) -> None:
    isolation.try_gpu(home, profile, "bwrap", lambda phase: None)


def test_on_a_cpu_no_gpu_is_tried(tmp_path):
    try_gpu(tmp_path, configs.load("laptop"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_box_tried_on_a_gpu_is_in_the_log_by_made_up_findings(tmp_path, monkeypatch, caplog):
    findings = [device_readiness.Finding("start", True, "a card, 80 GiB")]
    monkeypatch.setattr(device_readiness, "in_a_box", lambda *_: iter(findings))
    profile = configs.load("laptop").model_copy(update={"device": "cuda"})
    try_gpu(tmp_path, profile)
    assert "GPU: start: a card, 80 GiB" in caplog.text
    findings += [device_readiness.Finding("torch.compile", False, "no gcc", "apt install gcc")]
    with pytest.raises(
        BoxError, match=r"the GPU cannot train here: torch.compile: no gcc. apt install gcc"
    ):
        try_gpu(tmp_path, profile)


def test_a_night_ends_before_its_data_where_a_box_cannot_use_the_gpu(tmp_path, warm, prefect_api):
    """Without a GPU here this is real; with one, no GPU is visible in the box."""
    checkout = Checkout(tmp_path, warm=warm, api=prefect_api)
    profile = checkout.folder / "tests" / "profiles" / "gpu.toml"
    profile.write_text('extends = "small.toml"\ndescription = "A GPU."\ndevice = "cuda"\n')
    hidden = "GPU-no-such-card"
    done = checkout.run(
        "night", "--profile", str(profile), "--tag", "one", CUDA_VISIBLE_DEVICES=hidden
    )
    assert done.returncode == 1, done.stderr
    said = [
        line for line in done.stderr.splitlines() if "the GPU cannot train here: start:" in line
    ]
    assert said, done.stderr
    assert "CUDA" in said[-1]
    assert "Traceback" not in done.stderr
    assert not (checkout.home / "data").exists()
    assert not (checkout.home / "nights" / "one").exists()  # the tag is free


@flow
def end_orphans(home: Path) -> None:
    isolation.end_orphans(home, "docker")


@pytest.mark.usefixtures("no_engine")
def test_a_night_in_containers_does_not_go_on_without_its_engine(tmp_path):
    with pytest.raises(BoxError, match="does not list its containers"):
        end_orphans(tmp_path)


@pytest.fixture
def header(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path)
    monkeypatch.setattr(state_home, "ROOT", checkout.folder)
    monkeypatch.setenv("NIGHTLY_HOME", str(checkout.home))

    @flow
    def make(**choices) -> NightHeader:
        none = dict.fromkeys(("trials", "hours", "proposer", "patches"))
        request = night.Request(
            **{**none, "profile": "laptop", "seed": 1, "allow_unsandboxed": False, **choices}
        )
        return opening.new_night("nov21", request)[0]

    return make


@pytest.mark.parametrize(
    ("asked", "trials", "hours"),
    [
        ({}, 4, None),
        ({"trials": 7}, 7, None),
        ({"hours": 8.0}, None, 8.0),
        ({"trials": 7, "hours": 8.0}, 7, 8.0),
    ],
)
def test_bounds_that_are_asked_for_replace_the_profiles(header, asked, trials, hours):
    made = header(**asked)
    assert (made.trials, made.hours) == (trials, hours)


def test_a_proposer_that_is_not_built_is_refused_before_any_work(header):
    with pytest.raises(UsageError, match="llm"):
        header(proposer="llm")


def test_a_folder_of_patches_that_is_missing_is_said_before_any_work(header, tmp_path):
    with pytest.raises(UsageError, match="no folder of patches"):
        header(proposer="replay", patches=str(tmp_path / "nothing"))


def test_notes_for_a_proposer_that_reads_none_are_refused_before_any_work(header):
    with pytest.raises(UsageError, match=r"--notes nov20 is for the proposers llm, .* is tpe"):
        header(proposer="tpe", notes="nov20")


def test_notes_of_a_night_that_is_not_there_are_refused_before_any_work(header, monkeypatch):
    monkeypatch.setattr(CommandProposer, "check", lambda settings: None)
    with pytest.raises(UsageError, match="no night 'nov20'"):
        header(proposer="command", notes="nov20")
