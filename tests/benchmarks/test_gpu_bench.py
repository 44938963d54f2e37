"""`./run bench gpu`: the whole of it at tiny shapes on a CPU, and that no part can take the others'
time or figures away."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import configs
from configs import knobs
from tests.benchmarks import gpu_bench, measured_process, train_bench
from tests.benchmarks.gpu_bench import Measurement, Setting
from tests.benchmarks.measured_process import MeasuredProcess, Part
from tests.waiting import wait_for

TINY = {
    "DEPTH": 2,
    "ASPECT_RATIO": 16,
    "HEAD_DIM": 16,
    "WINDOW_PATTERN": "SL",
    "MAX_SEQ_LEN": 64,
    "VOCAB_SIZE": 512,
    "TOTAL_BATCH_SIZE": 128,
    "DEVICE_BATCH_SIZE": 2,
}
PROMPT = 1e6  # seconds: the tests are not about how fast this machine is


def tiny() -> Setting:
    whole = gpu_bench.cpu_setting()
    profile = whole.profile.model_copy(update={"train": TINY})
    data = whole.profile.data
    trial = gpu_bench.on_corpus(profile, documents=4, amount=1e8, positions=16)
    small = trial.data.model_copy(update={"train": data.train[:1], "tokenizer_characters": 100_000})
    return dataclasses.replace(
        whole,
        profile=profile,
        upstream=TINY,
        trial=trial.model_copy(update={"data": small}),
        scored_tokens=10_000,
        steps=3,
    )


def measurement(folder: Path, **works: Any) -> Measurement:
    """One whose parts are these functions, with equal shares of 100 s a part."""
    found = Measurement(tiny(), folder, folder / "figures.json", 100.0 * len(works))
    found.plan = {name: (1, work) for name, work in works.items()}
    return found


def python(code: str, folder: Path) -> MeasuredProcess:
    return MeasuredProcess([sys.executable, "-c", code], {}, folder)


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    well = gpu_bench.measure(tiny(), path, limit_seconds=PROMPT)
    found = json.loads(path.read_text())
    assert {name: part["reason"] for name, part in found["parts"].items() if part["reason"]} == {}
    assert well
    assert found["finished"]
    figures = {name: part["figures"] for name, part in found["parts"].items()}
    for name in ("upstream's shapes, cold", "ours, cold", "ours, warm", "ours, compiled whole"):
        assert figures[name]["tokens_per_second"] > 0, name
        assert 0 < figures[name]["seconds_to_ready"] < figures[name]["seconds_to_first_step"]
    for name in ("ours, attention", "upstream's shapes, attention"):
        assert set(figures[name]["chosen"]) == {"y", "dq", "dk", "dv"}
    trial = figures["whole trial"]
    assert trial["status"] == "ok"
    assert trial["audit_gap_nats"] < 1e-4
    assert set(trial["phase_seconds"]) >= {"trying out", "training", "scoring", "being audited"}
    assert set(trial["host_memory_mib"]) == {"smoke", "train", "claim", "audit"}
    assert 0 < figures["summary"]["audited_training_percent"] < 100
    table = capsys.readouterr().out
    assert (
        f"| ours, cold | tokens per second | {figures['ours, cold']['tokens_per_second']:,.0f}"
        in table
    )


def test_a_part_that_does_not_fit_keeps_what_it_found(tmp_path: Path) -> None:
    code = "import time; print('{\"tokens\": 1}', flush=True); print('{\"tok'); time.sleep(1e6)"
    process = python(code, tmp_path)
    wait_for(process.figures, "a line of figures")
    part = process.part(0.0)
    assert (part.status, part.figures) == ("did not fit", {"tokens": 1})
    assert part.reason == "ended after the 0 s that it had"


def test_a_part_that_ignores_its_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_process, "GRACE_SECONDS", 0.0)
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "print('{\"up\": 1}', flush=True); time.sleep(1e6)"
    )
    process = python(code, tmp_path)
    wait_for(process.figures, "a line of figures")
    assert process.part(0.0).status == "did not fit"


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    part = python("print('{\"tokens\": 1}'); raise RuntimeError('no such card')", tmp_path).part(
        PROMPT
    )
    assert (part.status, part.figures) == ("failed", {"tokens": 1})
    assert part.reason == "RuntimeError: no such card"
    assert "Traceback" in part.log


def test_parts_are_written_as_they_come_and_one_that_fails_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, seen = tmp_path / "figures.json", []

    def good(seconds: float) -> Part:
        return Part("ok", 1.0, {"tokens_per_second": 12345.6})

    def bad(seconds: float) -> Part:
        seen.append(json.loads(path.read_text()))
        raise ValueError("a knob that is unknown")

    assert not measurement(tmp_path, first=good, second=bad, third=good).run()
    assert list(seen[0]["parts"]) == ["first"]
    assert not seen[0]["finished"]
    written = json.loads(path.read_text())
    assert [part["status"] for part in written["parts"].values()] == ["ok", "failed", "ok"]
    assert written["finished"]
    table = capsys.readouterr().out
    assert "| second | **failed** | ValueError: a knob that is unknown |" in table
    assert "| third | tokens per second | 12,346 |" in table


def test_time_that_is_left_over_is_the_next_parts_and_a_late_part_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, given = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def takes(seconds: float) -> Any:
        def work(left: float) -> Part:
            given.append(left)
            now[0] += seconds
            return Part("ok", seconds, {})

        return work

    found = measurement(tmp_path, first=takes(10.0), second=takes(190.0), third=takes(99.0))
    found.limit_seconds = 200.0 + 4.0
    found.plan["third"] = (0.04, found.plan["third"][1])
    assert not found.run()
    grace = measured_process.GRACE_SECONDS
    assert given == pytest.approx([100.0 - grace, 190.0 - grace])
    assert found.parts["third"].status == "not run"


def test_attention_is_exact_only_if_the_chosen_one_ran_and_all_agree() -> None:
    good = {part: 1e-3 for part in ("y", "dq", "dk", "dv")}
    assert gpu_bench.is_exact({"chosen": good, "FlexAttention": "not for this card"})
    assert not gpu_bench.is_exact({"chosen": "RuntimeError: no kernel", "local": good})
    assert not gpu_bench.is_exact({"chosen": good, "local": good | {"dk": 0.5}})
    assert not gpu_bench.is_exact({"chosen": good | {"y": float("nan")}})


def test_a_night_is_reckoned_from_one_short_trial() -> None:
    setting = dataclasses.replace(tiny(), profile=configs.load("h100"))
    trial = {
        "wall_seconds": 70.0,
        "judged_seconds": 20.0,
        "hand_over_seconds": 2.0,
        "phase_seconds": {
            "trying out": 20.0,
            "training": 20.0,
            "scoring": 20.0,
            "being audited": 10.0,
        },
        "gpu_busy_seconds": {
            "trying out": 1.0,
            "training": 18.0,
            "scoring": 3.0,
            "being audited": 4.0,
        },
    }
    found = gpu_bench.night(setting, trial)
    assert found["audited_outside_training_seconds"] == 52.0
    assert found["unaudited_outside_training_seconds"] == 42.0
    assert found["audited_trials_per_hour"] == pytest.approx(3600 / 350)
    assert found["unaudited_training_percent"] == pytest.approx(100 * 298 / 340)
    assert found["audited_gpu_busy_percent"] == pytest.approx(100 * (0.9 * 300 + 8) / 350)
    assert found["unaudited_gpu_busy_percent"] == pytest.approx(100 * (0.9 * 300 + 4) / 340)
    assert gpu_bench.night(setting, {"phase_seconds": {"trying out": 3.0}}) == {}


@pytest.mark.parametrize(
    ("card", "gib", "name"),
    [
        ("NVIDIA H200", 139, "h200"),
        ("NVIDIA H100 80GB HBM3", 79, "h100"),
        ("NVIDIA GeForce RTX 4090", 24, "consumer"),
    ],
)
def test_a_made_up_card_gets_its_profile_and_orders_that_can_be_followed(
    card: str, gib: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = SimpleNamespace(name=card, total_memory=gib * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: made_up)
    setting = gpu_bench.gpu_setting()
    assert (setting.profile.name, setting.device) == (name, "cuda")
    assert configs.Profile(**setting.trial.model_dump(mode="json")) == setting.trial
    assert setting.trial.budget.amount < setting.profile.budget.amount
    for values in (setting.upstream, setting.profile.train):
        source = train_bench._candidate(tmp_path, name, values).read_text()
        assert knobs.read(source).items() >= dict(values).items()
    assert setting.trial.data.vocab_sizes == (setting.profile.train["VOCAB_SIZE"],)
    assert (configs.FOLDER / setting.trial.data.source / setting.trial.data.validation).is_file()
