"""One whole trial on the embedded corpus, with a stopwatch beside it: `python -m
tests.benchmarks.timed_trial ORDER.json`.

Everything is real but the text: a tokenizer is trained and rows are packed here, from the corpus
that needs no network, and `run_experiment` takes train.py through smoke step, training, claims and
audit. Prints figures as JSON lines after each phase.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import configs
from flows.night import isolation
from tasks.data import dataset, tokenization
from tasks.data.dataset import Shard
from tasks.errors import BoxError
from tasks.files import FileRef, make_readable
from tasks.judge import nvml
from tasks.judge.box import Box, open_box
from tasks.records import Bench, Candidate, Dataset, RunResult
from tasks.trial import baseline, experiment
from tests.benchmarks.orders import TrialOrder
from trainer import prepare

SAMPLE_SECONDS = 0.1


class Phases:
    """What a run does when: seconds, busy seconds of the GPU and its memory, by phase.

    It is the run's Report. The first phase has no name: what comes before the run.
    """

    def __init__(self, clock: nvml.BusyClock | None, figures: dict[str, Any]) -> None:
        self._clock, self._figures = clock, figures
        self._phase, self._last = "", (time.monotonic(), 0.0)

    def __call__(self, phase: str) -> None:
        now = time.monotonic(), self._clock.seconds if self._clock else 0.0
        self._add("phase_seconds", now[0] - self._last[0])
        if self._clock:
            self._add("gpu_busy_seconds", now[1] - self._last[1])
        self._phase, self._last = phase, now
        tell(self._figures)

    def _add(self, name: str, value: float) -> None:
        if self._phase:
            found = self._figures.setdefault(name, {})
            found[self._phase] = found.get(self._phase, 0.0) + value

    def watch_memory(self, used: Callable[[], float], stop: threading.Event) -> None:
        """Notes the most memory that was `used` in each phase, MiB, until `stop`."""
        while not stop.wait(SAMPLE_SECONDS):
            if phase := self._phase:
                found = self._figures.setdefault("device_memory_mib", {})
                found[phase] = max(found.get(phase, 0.0), used())


def device_memory() -> Callable[[], float]:
    """A function that says how much more of the GPU's memory is in use than now, in MiB."""
    import torch

    def free() -> float:
        return torch.cuda.mem_get_info()[0] / 2**20

    before = free()
    return lambda: before - free()


def run(order: TrialOrder) -> None:
    profile, home = configs.Profile(**order.profile), Path(order.home)
    figures: dict[str, Any] = {}
    began = time.monotonic()
    make_readable(home)
    data = corpus_dataset(profile, home / "data", order.scored_tokens)
    data = dataclasses.replace(
        data, attention_kernels=tuple(FileRef(*ref) for ref in order.attention_kernels)
    )
    figures["data_seconds"] = time.monotonic() - began
    figures["isolation"], problem = choose_isolation(home, profile)
    if problem:
        figures["isolation_problem"] = problem
    tell(figures)
    caps = dataclasses.replace(baseline.first_caps(profile), kernels=order.seed)
    bench = Bench(profile, data, home, figures["isolation"], caps)
    source = Path(order.train).read_text(encoding="utf-8")
    tried = _try(Candidate.parse(source), bench, figures)
    tell(figures | told(tried))
    if tried.status != "ok":
        print(tried.log[-2000:], file=sys.stderr)
        sys.exit(f"the trial ended as {tried.status}: {tried.reason}")


def tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)


def _try(candidate: Candidate, bench: Bench, figures: dict[str, Any]) -> RunResult:
    """An audited trial; adds what is seen from outside to `figures`."""
    on_gpu, stop = bench.profile.device == "cuda", threading.Event()
    used = device_memory() if on_gpu else None
    clocked = nvml.busy_clock() if on_gpu else contextlib.nullcontext()
    with _noting_boxes(figures), clocked as clock:
        phases = Phases(clock, figures)
        if used:
            threading.Thread(target=phases.watch_memory, args=(used, stop), daemon=True).start()
        try:
            return experiment.run_experiment(
                candidate, bench, 1, worth_audit=lambda claimed: True, smoke=True, report=phases
            )
        finally:
            phases("")
            stop.set()


@contextlib.contextmanager
def _noting_boxes(figures: dict[str, Any]) -> Iterator[None]:
    """Adds the most host memory of each box, by role, once the run is over."""
    opened: list[tuple[str, Box]] = []
    module = vars(experiment)

    @contextlib.contextmanager
    def noting(spec: Any) -> Iterator[Box]:
        with open_box(spec) as box:
            opened.append((spec.role, box))
            yield box

    module["open_box"] = noting
    try:
        yield
    finally:
        module["open_box"] = open_box
        figures["host_memory_mib"] = {
            role: box.watchdog.peak_memory_bytes / 2**20 for role, box in opened
        }


def told(run: RunResult) -> dict[str, Any]:
    """The figures of a run. Seconds are the judge's; what a training says of itself is its own."""
    figures: dict[str, Any] = {
        "status": run.status,
        "reason": run.reason,
        "val_bpb": run.val_bpb,
        "startup_seconds": run.startup_seconds,
        "judged_seconds": run.seconds,
        "wall_seconds": run.wall_seconds,
        "checkpoint_mib": (run.checkpoint_bytes or 0) / 2**20,
        "audit_gap_nats": run.audit_gap,
        "audit_worst_nats": run.audit_worst,
    }
    rate = run.metrics.get("tokens_per_second")
    if run.seconds and run.tokens and rate:
        figures["tokens_per_second"] = rate
        figures["hand_over_seconds"] = run.seconds - run.tokens / rate
    return figures


def choose_isolation(home: Path, profile: configs.Profile) -> tuple[str, str | None]:
    """The boxes of a night here; where there are none, no boxes, and why."""
    try:
        return isolation.choose_isolation(home, profile, False), None
    except BoxError as error:
        return "none", str(error)


def corpus_dataset(profile: configs.Profile, folder: Path, scored_tokens: int) -> Dataset:
    """The embedded corpus, prepared in `folder` at the profile's vocabulary and length.

    Its validation text, 0.2 M tokens, is repeated up to about `scored_tokens`: a night scores 21 M.
    """
    data = profile.data
    [vocab_size], T = data.vocab_sizes, data.sequence_length
    public, train, validation = (folder / name for name in ("public", "train", "validation"))
    *shards, held = (
        Shard.of(name, FileRef.of(configs.FOLDER / data.source / name))
        for name in (*data.train, data.validation)
    )
    texts = itertools.chain.from_iterable(map(dataset.documents, shards))
    tokenizer = tokenization.train_tokenizer(texts, vocab_size, data.tokenizer_characters)
    meta = prepare.Meta(
        "embedded corpus",
        (vocab_size,),
        T,
        {vocab_size: tokenizer.bos},
        data.license,
        prepare.METRIC_VERSION,
    )
    tokenization.write_public(meta, [tokenizer], public)
    for index, shard in enumerate(shards):
        batches = dataset.batches(shard)
        tokenization.encode_shard(batches, tokenizer, train, index, os.cpu_count() or 1)
    tokenization.pack(train, vocab_size, T)
    scored = dataset.scored(held, data.validation_documents)
    tokenization.encode_scored(scored, [tokenizer], validation)
    make_readable(folder)
    return Dataset(
        meta.fingerprint,
        str(public),
        str(train),
        str(validation),
        _repeat(validation, vocab_size, scored_tokens),
    )


def _repeat(validation: Path, vocab_size: int, tokens: int) -> int:
    """Repeats the scored documents up to about `tokens`; their bytes in all."""
    path, described = validation / f"stream_{vocab_size}.npy", validation / "manifest.json"
    stream, manifest = np.load(path), json.loads(described.read_text(encoding="utf-8"))
    times = max(tokens // len(stream), 1)
    FileRef.write(path, lambda file: np.save(file, np.tile(stream, times)))
    for count in ("documents", "bytes"):
        manifest[count] *= times
    FileRef.write(described, json.dumps(manifest).encode())
    return int(manifest["bytes"])


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run(TrialOrder(**given))
