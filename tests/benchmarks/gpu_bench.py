"""What one GPU does with train.py, in at most nine minutes: start-up, speed, memory, exactness, and
how much of a night it would train.

Every part runs in processes of its own and has a deadline; time that a part leaves over is the next
one's. A part that fails or does not fit is reported as such, with what it had found by then, and
the others go on. The JSON is written again after each part. Nothing needs a network.

On a CPU the same code runs at the laptop profile's shapes, where its figures mean little.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import configs
from flows import state_home
from tasks.data import attention_kernels
from tasks.files import FileRef, make_readable
from tasks.judge import box, bwrap, nvml, processes
from tasks.judge.native_code import NativeKernel
from tests import boxes
from tests.benchmarks import train_bench
from tests.benchmarks.measured_process import GRACE_SECONDS, MeasuredProcess, Part
from tests.benchmarks.orders import TrainOrder, TrialOrder
from tests.benchmarks.timed_train import DOCUMENT_TOKENS

LIMIT_SECONDS = 540.0
LEAST_SECONDS = 5.0  # with less than this left a part is not begun
LARGE_CARD_GIB = 70
TRAINING, AUDIT = "training", "being audited"  # phases, as a run reports them
TOY_UPSTREAM = {"WINDOW_PATTERN": "SSSL", "SHORT_WINDOW_DIVISOR": 2}
FORMATS = (  # how a figure is shown, by a part of its name; the first that matches
    ("per_second", "{:,.0f}"),
    ("per_cpu_second", "{:,.0f}"),
    ("per_hour", "{:.1f}"),
    ("per_token", "{:,.0f}"),
    ("percent", "{:.1f} %"),
    ("seconds", "{:.1f} s"),
    ("mib", "{:,.0f} MiB"),
    ("nats", "{:.1e} nats"),
    ("bpb", "{:.4f}"),
    ("", "{:.3g}"),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured, at which size."""

    profile: configs.Profile  # our default; its device is the one that is measured
    upstream: Mapping[str, Any]  # the knobs that give karpathy/autoresearch's shapes
    trial: configs.Profile  # the same on the embedded corpus, with a short budget
    scored_tokens: int  # of the trial, as many as a night with this profile scores
    skip: int  # steps before a stopwatch starts
    steps: int  # that it times
    seconds: float  # the most that it times

    @property
    def device(self) -> str:
        return self.profile.device


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the table and writes the same figures to `json_file`; False unless every part is ok,
    attention is exact and the honest trial passes its audit. Each part runs once."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a download has no place in nine minutes
    setting = gpu_setting() if torch.cuda.is_available() else cpu_setting()
    return measure(setting, json_file)


def gpu_setting() -> Setting:
    """The profile for this card, and upstream's shapes as they are."""
    card = torch.cuda.get_device_properties(0)
    if torch.version.hip:
        name = "rocm"
    elif card.total_memory < LARGE_CARD_GIB * 2**30:
        name = "consumer"
    else:
        name = "h200" if "H200" in card.name else "h100"
    profile = configs.load(name)
    return Setting(
        profile=profile,
        upstream=train_bench.UPSTREAM,
        trial=on_corpus(profile, documents=697, amount=20.0),
        scored_tokens=profile.data.validation_documents * DOCUMENT_TOKENS,
        skip=5,
        steps=60,
        seconds=8.0,
    )


def cpu_setting() -> Setting:
    profile = configs.load("laptop")
    return Setting(
        profile=profile,
        upstream=profile.train | TOY_UPSTREAM,
        trial=on_corpus(profile, documents=40, amount=profile.budget.amount / 10, positions=128),
        scored_tokens=0,
        skip=2,
        steps=10,
        seconds=10.0,
    )


def on_corpus(
    profile: configs.Profile, documents: int, amount: float, positions: int | None = None
) -> configs.Profile:
    """The profile with a budget of `amount`, on the embedded corpus at its own vocabulary and
    length: `documents` are scored, and an audit asks at `positions`, by default its own."""
    corpus = configs.load("laptop").data
    data = corpus.model_copy(
        update={
            "validation_documents": documents,
            "vocab_sizes": (profile.train["VOCAB_SIZE"],),
            "sequence_length": profile.train["MAX_SEQ_LEN"],
        }
    )
    budget = profile.budget.model_copy(update={"amount": amount})
    audit = profile.audit.model_copy(
        update={"positions": positions or profile.audit.positions, "share": 0.0}
    )
    return profile.model_copy(update={"data": data, "budget": budget, "audit": audit})


def measure(
    setting: Setting, json_file: Path | None = None, limit_seconds: float = LIMIT_SECONDS
) -> bool:
    """`run` for any setting."""
    with tempfile.TemporaryDirectory() as folder:
        return Measurement(setting, Path(folder), json_file, limit_seconds).run()


class Measurement:
    """One call: its parts so far, in the order of what they tell."""

    def __init__(
        self, setting: Setting, folder: Path, json_file: Path | None, limit_seconds: float
    ) -> None:
        make_readable(folder)
        self.setting, self.folder, self.json_file = setting, folder, json_file
        self.limit_seconds, self.began = limit_seconds, time.monotonic()
        self.parts: dict[str, Part] = {}
        self.environment: dict[str, str] = {}
        self.attention_kernels: list[tuple[str, str, int]] = []
        # Each with its share of the time.
        self.plan: dict[str, tuple[float, Callable[[float], Part]]] = {
            "machine": (10, self._machine),
            "upstream's shapes, cold": (100, self._upstream),
            "ours, cold": (95, self._cold),
            "ours, warm": (45, self._warm),
            "whole trial": (115, self._trial),
            "ours, attention": (40, self._attention),
            "ours, compiled whole": (95, self._whole),
            "upstream's shapes, attention": (30, self._attention_upstream),
            "summary": (0, self._summary),
        }

    def run(self) -> bool:
        print(f"\n| part | figure | {self.setting.device}, profile {self.setting.profile.name} |")
        print("| --- | --- | --- |", flush=True)
        for name, (_, work) in self.plan.items():
            part = self.parts[name] = self._part(name, work)
            self._print(name, part)
            self._write()
        return all(part.status == "ok" for part in self.parts.values())

    def _part(self, name: str, work: Callable[[float], Part]) -> Part:
        left, began = self.left(name), time.monotonic()
        if left < LEAST_SECONDS and name != "summary":
            return Part("not run", 0.0, {}, f"{max(left, 0.0):.0f} s were left")
        try:
            return work(left)
        except Exception as error:  # the others' figures are not lost for it
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            return Part("failed", time.monotonic() - began, {}, reason)

    def left(self, name: str) -> float:
        """The seconds that this part may take: until its share of the whole is over, and those
        before it have used theirs."""
        names = list(self.plan)
        shares = [share for share, _ in self.plan.values()]
        until = sum(shares[: names.index(name) + 1]) / sum(shares) * self.limit_seconds
        return until - GRACE_SECONDS - (time.monotonic() - self.began)

    def _print(self, name: str, part: Part) -> None:
        if part.status != "ok":
            print(f"| {name} | **{part.status}** | {text_of(name, part.reason)} |")
        for label, value in shown(part.figures):
            print(f"| {name} | {label} | {value} |")
        print(f"| {name} | took | {part.seconds:.1f} s |", flush=True)

    def _write(self) -> None:
        if self.json_file is None:
            return
        figures = {
            "setting": {
                "device": self.setting.device,
                "profile": self.setting.profile.name,
                "upstream": dict(self.setting.upstream),
                "ours": self.setting.profile.train,
                "trial_budget": self.setting.trial.budget.model_dump(),
            },
            "seconds": time.monotonic() - self.began,
            "finished": len(self.parts) == len(self.plan),
            "parts": {name: dataclasses.asdict(part) for name, part in self.parts.items()},
        }
        FileRef.write(self.json_file, json.dumps(figures, indent=1).encode())

    # ----------------------------------------------------------------------------------------------
    # Parts

    def _machine(self, seconds: float) -> Part:
        """What this machine is, and which native attention kernels were prepared on it."""
        began, found = time.monotonic(), dict[str, Any]()
        found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
        found["torch"] = torch.__version__
        if self.setting.device == "cuda":
            card = torch.cuda.get_device_properties(0)
            found["card"] = str(nvml.first_gpu() or f"{card.name}, {card.total_memory >> 30} GiB")
            found["runtime"] = f"CUDA {torch.version.cuda}, HIP {torch.version.hip}"
        self.environment = box_settings(self.setting.profile, self._open("box"))
        found |= self._find_attention_kernels()
        return Part("ok", time.monotonic() - began, found)

    def _find_attention_kernels(self) -> dict[str, str]:
        """Puts those that were prepared into the environment; why others are not used."""
        pins, left_out = self.setting.profile.attention_kernels, list[str]()
        folder = state_home.locate() / "data" / "kernels"
        refs = attention_kernels.fetch_each(pins, folder, left_out.append)
        self.attention_kernels = [dataclasses.astuple(ref) for ref in refs]
        found = [NativeKernel.checked(Path(ref.path), ref.sha256) for ref in refs]
        if found:
            named = (f"{kernel.repository}={kernel.folder}" for kernel in found)
            self.environment["LOCAL_KERNELS"] = ":".join(named)
        remedy = f"`./run prepare --profile {self.setting.profile.name}` fetches it"
        return {f"left out {i}": f"{line}. {remedy}" for i, line in enumerate(left_out, 1)}

    def _upstream(self, seconds: float) -> Part:
        return self._train("upstream", seconds, self.setting.upstream)

    def _cold(self, seconds: float) -> Part:
        return self._train("cold", seconds, export=True)

    def _warm(self, seconds: float) -> Part:
        """From what the cold start-up compiled; exports again, as the night's baseline does."""
        if (seed := self._kernels("cold")) is None:
            return Part("not run", 0.0, {}, "the cold part left no compiled kernels")
        return self._train("warm", seconds, seed=seed, export=True)

    def _whole(self, seconds: float) -> Part:
        return self._train("whole", seconds, whole=True)

    def _train(
        self,
        name: str,
        seconds: float,
        values: Mapping[str, Any] | None = None,
        *,
        whole: bool = False,
        seed: str | None = None,
        export: bool = False,
    ) -> Part:
        """One timing of train.py with these knobs, by default ours, and an empty compile cache."""
        folder, values = self._open(name), values or self.setting.profile.train
        shapes = dataclasses.replace(
            train_bench._shapes(values, self.setting.device),
            skip=self.setting.skip,
            steps=self.setting.steps,
            seconds=self.setting.seconds,
            born=time.time(),
        )
        order = TrainOrder(
            shapes,
            str(train_bench._candidate(folder, name, values)),
            whole,
            seed,
            str(folder / "kernels") if export else None,
        )
        return self._process("compiled_train", order, folder).part(seconds)

    def _kernels(self, name: str) -> str | None:
        path = self.folder / name / "kernels"
        return str(path) if path.is_file() else None

    def _attention(self, seconds: float) -> Part:
        return self._compare_attention("attention", seconds, self.setting.profile.train)

    def _attention_upstream(self, seconds: float) -> Part:
        """Another backend may be chosen there."""
        return self._compare_attention("attention-upstream", seconds, self.setting.upstream)

    def _compare_attention(self, name: str, seconds: float, values: Mapping[str, Any]) -> Part:
        """The worst error of each backend over the windows, and which was chosen."""
        folder = self._open(name)
        shapes = train_bench._shapes(values, self.setting.device)
        path = train_bench._candidate(folder, name, values)
        process = self._process("timed_train", shapes, folder, str(path), "--attention")
        part = process.part(seconds)
        chosen = [line for line in process.log().splitlines() if line.startswith("attention:")]
        figures = {**part.figures, "choice": "; ".join(chosen) or None}
        if part.status == "ok" and not is_exact(part.figures):
            reason = f"not exact: an error is above {train_bench.ERROR_LIMIT}, or none was chosen"
            return dataclasses.replace(part, status="failed", reason=reason, figures=figures)
        return dataclasses.replace(part, figures=figures)

    def _trial(self, seconds: float) -> Part:
        folder, home = self._open("trial"), self._open("home")
        order = TrialOrder(
            profile=self.setting.trial.model_dump(mode="json"),
            train=str(train_bench._candidate(folder, "trial", self.setting.profile.train)),
            home=str(home),
            scored_tokens=self.setting.scored_tokens,
            seed=self._kernels("warm") or self._kernels("cold"),
            attention_kernels=tuple(self.attention_kernels),
        )
        try:
            return self._process("timed_trial", order, folder).part(seconds)
        finally:  # what a trial that was killed left behind
            processes.end_orphans(home)
            box.sweep(home)

    def _summary(self, seconds: float) -> Part:
        """What the parts say together; a figure whose parts are missing is left out."""
        figures: dict[str, Any] = {}

        def rate(name: str, key: str = "tokens_per_second") -> Any:
            return self.parts[name].figures.get(key)

        ratios = {
            "ours_to_upstream_shapes_tokens_ratio": (
                rate("ours, cold"),
                rate("upstream's shapes, cold"),
            ),
            "whole_to_region_tokens_ratio": (rate("ours, compiled whole"), rate("ours, cold")),
            "warm_to_cold_startup_ratio": (
                rate("ours, warm", "seconds_to_first_step"),
                rate("ours, cold", "seconds_to_first_step"),
            ),
        }
        if self.setting.device == "cuda":
            ratios["upstream_shapes_to_its_h100_tokens_ratio"] = (
                rate("upstream's shapes, cold"),
                train_bench.UPSTREAM_TOKENS_PER_SECOND,
            )
        figures |= {name: a / b for name, (a, b) in ratios.items() if a and b}
        return Part("ok", 0.0, figures | night(self.setting, self.parts["whole trial"].figures))

    def _open(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        make_readable(folder)
        return folder

    def _process(self, module: str, order: Any, folder: Path, *others: str) -> MeasuredProcess:
        given = folder / "order.json"
        given.write_text(json.dumps(dataclasses.asdict(order)), encoding="utf-8")
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        argv = [sys.executable, "-m", f"tests.benchmarks.{module}", str(given), *others]
        return MeasuredProcess(argv, {**self.environment, **caches}, folder)


def is_exact(errors: Mapping[str, Any]) -> bool:
    """Whether the chosen attention ran, and every one that ran agrees with float32."""
    measured = [error for error in errors.values() if isinstance(error, dict)]
    within = (x < train_bench.ERROR_LIMIT for error in measured for x in error.values())
    return isinstance(errors.get("chosen"), dict) and all(within)


def night(setting: Setting, trial: Mapping[str, Any]) -> dict[str, float]:
    """What a night of such trials would be, each with the whole budget of the profile: seconds
    outside training, trials an hour, and the share of the time in which the GPU trains.

    Each begins when the one before has ended; once if every trial is audited, and once if none is.
    Empty if the trial has no figures.
    """
    wall, judged = trial.get("wall_seconds"), trial.get("judged_seconds")
    if not wall or not judged:
        return {}
    ours, tried = setting.profile.budget, setting.trial.budget
    budget = ours.amount if ours.kind == "seconds" else judged * ours.amount / tried.amount
    hand_over = trial.get("hand_over_seconds", 0.0)
    took, busy = trial["phase_seconds"], trial.get("gpu_busy_seconds")
    figures: dict[str, float] = {}
    for name, left_out in (("audited", ""), ("unaudited", AUDIT)):
        outside = wall - judged - took.get(left_out, 0.0)
        whole = budget + outside
        figures[f"{name}_outside_training_seconds"] = outside + hand_over
        figures[f"{name}_trials_per_hour"] = 3600 / whole
        figures[f"{name}_training_percent"] = 100 * (budget - hand_over) / whole
        if busy:
            others = sum(x for phase, x in busy.items() if phase not in (TRAINING, left_out))
            training = budget * busy[TRAINING] / took[TRAINING]
            figures[f"{name}_gpu_busy_percent"] = 100 * (training + others) / whole
    return figures


def box_settings(profile: configs.Profile, folder: Path) -> dict[str, str]:
    """The variables by which a box sets up memory, threads and torch."""
    spec = boxes.make_spec(folder, device=profile.device, threads=profile.threads)
    inside = bwrap.environment(spec, 0)
    kinds = ("MALLOC_", "OMP_", "PYTORCH_", "HF_")
    return {name: value for name, value in inside.items() if name.startswith(kinds)}


def shown(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each figure; a table in it gives a row an entry."""
    for name, value in figures.items():
        label = re.sub(r"_(mib|nats|percent)$", "", name).replace("_", " ")
        if isinstance(value, dict):
            for entry, one in value.items():
                yield f"{label}: {entry}", text_of(name, one)
        elif value is not None:
            yield label, text_of(name, value)


def text_of(name: str, value: Any) -> str:
    """A figure with its unit, which is a part of its name."""
    if isinstance(value, int | float):
        return next(form for part, form in FORMATS if part in name).format(value)
    return str(value).replace("|", "/").replace("\n", " ")
