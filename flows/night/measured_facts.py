"""What was measured about data and baseline, as a researcher is told it: by facts with a name.

Figures of a study box are the candidate's own word. Names and texts in them were cut to length when
they were taken; here they are cleaned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.data.corpus_facts import CorpusFacts
from tasks.proposers.digest import plain, short
from tasks.records import Baseline, Bench, LossBin, Study

CORPUS, READING, TIME = "training text", "how it is read", "processor time"
STEP, LOSSES = "where a training step goes", "loss on training rows that no gradient saw"
WORDS = 300  # characters of a problem


def measured_facts(bench: Bench, baseline: Baseline) -> dict[str, str]:
    """Of the data, and of the baseline's runs and study. A fact that is not known is left out."""
    facts = {
        CORPUS: _corpus(bench),
        READING: _reading(bench, baseline),
        TIME: _processor_time(bench, baseline),
    }
    if baseline.study:
        facts |= {f"baseline: {STEP}": step(baseline.study)}
        facts |= {f"baseline: {LOSSES}": losses(baseline.study)}
    return {name: fact for name, fact in facts.items() if fact}


def _corpus(bench: Bench) -> str:
    """Of each vocabulary; nothing if a file of them is gone: a run would say so."""
    sizes = [rows.vocab_size for rows in bench.dataset.rows]
    try:
        return "; ".join(CorpusFacts.of(bench.dataset, size).describe() for size in sizes)
    except OSError:
        return ""


def _reading(bench: Bench, baseline: Baseline) -> str:
    if not bench.dataset.rows:
        return ""
    rows = bench.dataset.rows[0]
    read = max(run.tokens or 0 for run in baseline.runs) / rows.sequence_length
    passes = read / max(rows.count, 1)
    how_much = f"{passes:.1%} of them, each once" if passes <= 1 else f"{passes:.1f} passes"
    return (
        f"prepare.train_rows(T, V) is uint16 [{rows.count:,}, {rows.sequence_length} + 1] (T "
        "inputs and T targets, shifted by one) in an order that is always the same: documents in "
        "the order of the shards, each after a BOS, packed by best fit. The baseline reads from "
        f"the first row on, modulo their number; its budget is over after {read:,.0f} rows: "
        f"{how_much}"
    )


def _processor_time(bench: Bench, baseline: Baseline) -> str:
    """Of training; nothing for a budget of seconds, where it has no limit."""
    caps, runs = bench.caps, baseline.runs
    used = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
    if bench.profile.budget.kind != "flops" or not used or caps.cpu_seconds is None:
        return ""
    usual = ""
    if caps.usual_cpu_seconds is not None:
        usual = (
            f"{caps.usual_cpu_seconds:.1f} if its steps write as many bytes per FLOP, more in "
            "proportion, and never above "
        )
    return (
        f"the baseline's trainings took {', '.join(f'{spent:.1f}' for spent in used)} CPU-seconds "
        f"from go to the checkpoint; a candidate's may take {usual}{caps.cpu_seconds:.1f}"
    )


def step(study: Study) -> str:
    """Where a training step goes."""
    whole = study.milliseconds
    if not study.parts and whole is None:
        return problems(study)
    of_flops = sum(part.flops for part in study.parts if not _is_outside(part.name)) or 1.0
    timed = sum(part.milliseconds or 0.0 for part in study.parts) or 1.0
    told = []
    for part in study.parts:
        figures = [] if part.milliseconds is None else [f"{part.milliseconds / timed:.0%} of time"]
        if _is_outside(part.name):
            figures.append(f"{part.flops / 1e9:.3g} GFLOP that no budget counts")
        elif part.flops:
            figures.append(f"{part.flops / of_flops:.0%} of FLOPs")
        if part.kept_bytes >= 1e5:
            figures.append(f"keeps {part.kept_bytes / 1e6:.3g} MB for backward")
        told.append(f"{part.name}: {', '.join(figures) or 'next to nothing'}")
    unit = "ms of processor time" if any(part.milliseconds for part in study.parts) else "ms"
    lines = [] if whole is None else [f"a step takes {whole:.3g} {unit}"]
    lines += [f"{of_flops / 1e9:.3g} GFLOP by part", *told]
    if study.operations:
        spent = sum(milliseconds for _, milliseconds in study.operations) or 1.0
        dearest = (f"{name} {ms / spent:.0%}" for name, ms in study.operations)
        lines.append(f"the costliest operations, in shares of their sum: {', '.join(dearest)}")
    if study.state:
        sizes = (f"{name} {size:,}" for name, size in study.state)
        lines.append(f"the checkpoint's largest tensors, * for numbers: {', '.join(sizes)}")
    if study.peak_gpu_bytes:
        lines.append(f"peak {study.peak_gpu_bytes / 2**30:.1f} GiB on the GPU")
    return "; ".join([*lines, *filter(None, [problems(study)])])


def _is_outside(part: str) -> bool:
    return part.startswith("optimizer")  # trainer/step_parts.py


def losses(study: Study) -> str:
    """The loss by token frequency and by position."""
    if study.bits_per_byte is None:
        return problems(study)
    which = f"of the {study.unread_rows:,} rows that come after those it trained on"
    if not study.unread_rows:
        which = "of the last rows, which were trained on: its budget reads all rows"
    by_rank = _binned(study.by_frequency, "rank")
    by_place = _binned(study.by_position, "token")
    return (
        f"{study.bits_per_byte:.3f} bits per byte on {study.rows} {which}. Nats a token, and share "
        "of the whole loss, by the target's rank in the training text (rank 0 is the most "
        f"frequent token): {', '.join(by_rank)}. By position in the row: {', '.join(by_place)}"
    )


def _binned(bins: Sequence[LossBin], noun: str) -> Iterator[str]:
    whole = sum(each.targets * (each.nats or 0.0) for each in bins) or 1.0
    for each in bins:
        if each.nats is not None:
            share = each.targets * each.nats / whole
            yield f"{noun} {each.first}-{each.stop - 1} {each.nats:.2f} ({share:.0%})"


def samples(study: Study, temperatures: Sequence[float]) -> str:
    """The continuations of a prompt."""
    if not study.samples:
        return problems(study)
    return "\n".join(
        f"at temperature {temperature:g}: {plain(text)}"
        for temperature, text in zip(temperatures, study.samples, strict=False)
    )


def problems(study: Study) -> str:
    """Why a part of a study is missing; empty if none is."""
    return "; ".join(f"no answer from {short(problem, WORDS)}" for problem in study.problems)
