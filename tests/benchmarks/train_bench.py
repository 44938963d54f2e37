"""How fast train.py trains: against a plain eager loop on a CPU, and against the public figure of
its shapes on a GPU.

Every figure comes from a fresh process, and those that are compared take turns, so that a busy
machine slows both alike. Tokens are random. A machine without CUDA says that the GPU part was not
run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import configs
from configs import knobs
from flows import state_home
from tasks.data import attention_kernels
from tasks.files import FileRef
from tasks.judge.native_code import NativeKernel
from tests.benchmarks.timed_train import Shapes

SKIP, STEPS = 5, 60
# tokens a CPU-second, of those of the plain loop as it comes: torch's own number of threads
CPU_TARGET = 1.0
UPSTREAM_TOKENS_PER_SECOND = 1.67e6  # karpathy/autoresearch on an H100: 499.6 M tokens in 300 s
ERROR_LIMIT = 1e-2  # of attention in bf16 against float32
UPSTREAM = {  # karpathy/autoresearch's train.py
    "DEPTH": 8,
    "ASPECT_RATIO": 64,
    "HEAD_DIM": 128,
    "WINDOW_PATTERN": "SSSL",
    "SHORT_WINDOW_DIVISOR": 2,
    "MAX_SEQ_LEN": 2048,
    "VOCAB_SIZE": 8192,
    "TOTAL_BATCH_SIZE": 524288,
    "DEVICE_BATCH_SIZE": 128,
}
# what a box sets
KEPT_PAGES = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}
OURS, PLAIN = "train.py as in a box", "plain loop as it comes"
PLAIN_OUR_WAY = "plain loop with a box's settings"


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the tables and writes the same figures to `json_file`; False when a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "repeats": repeats,
            "cpu": _cpu(Path(folder), repeats),
            "gpu": _gpu(Path(folder), repeats) if torch.cuda.is_available() else None,
        }
    if figures["gpu"] is None:
        print("\nGPU part: not run (no CUDA device)")
    if json_file:
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    return bool(figures["cpu"]["met"] and (figures["gpu"] is None or figures["gpu"]["met"]))


def _shapes(values: Mapping[str, Any], device: str) -> Shapes:
    heads = -(-values["DEPTH"] * values["ASPECT_RATIO"] // values["HEAD_DIM"])
    return Shapes(
        device=device,
        vocab=values["VOCAB_SIZE"],
        length=values["MAX_SEQ_LEN"],
        depth=values["DEPTH"],
        width=heads * values["HEAD_DIM"],
        heads=heads,
        batch=values["DEVICE_BATCH_SIZE"],
        total_batch=values["TOTAL_BATCH_SIZE"],
        skip=SKIP,
        steps=STEPS,
        born=0.0,
    )


def _candidate(folder: Path, name: str, values: Mapping[str, Any]) -> Path:
    """trainer/train.py with these knobs written into it, as a night does."""
    path = folder / f"{name}_train.py"
    path.write_text(
        knobs.write((state_home.ROOT / "trainer" / "train.py").read_text(encoding="utf-8"), values),
        encoding="utf-8",
    )
    return path


def _fresh(
    module: str,
    shapes: Shapes,
    folder: Path,
    threads: int,
    arguments: Sequence[str] = (),
    **environment: str,
) -> dict[str, Any]:
    """The JSON object that a new process prints; `attention` is what it said of its backends."""
    given = folder / "shapes.json"
    given.write_text(
        json.dumps(dataclasses.asdict(shapes) | {"born": time.time()}), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{module}", str(given), *arguments],
        cwd=state_home.ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{module} ended with exit code {done.returncode}: {done.stderr[-2000:]}"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {
        "attention": [line for line in done.stderr.splitlines() if line.startswith("attention:")]
    }


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _cpu(folder: Path, repeats: int) -> dict[str, Any]:
    """train.py at the laptop profile's shapes and the plain loop, under several settings of the
    process, in turns."""
    profile = configs.load("laptop")
    shapes, path = _shapes(profile.train, "cpu"), _candidate(folder, "laptop", profile.train)
    all_cores = torch.get_num_threads()
    ways: dict[str, tuple[str, list[str], int, Mapping[str, str]]] = {
        OURS: ("timed_train", [str(path)], profile.threads, KEPT_PAGES),
        "train.py, freed pages given back": ("timed_train", [str(path)], profile.threads, {}),
        f"train.py, {all_cores} threads": ("timed_train", [str(path)], all_cores, KEPT_PAGES),
        PLAIN: ("plain_gpt", [], all_cores, {}),
        PLAIN_OUR_WAY: ("plain_gpt", [], profile.threads, KEPT_PAGES),
    }
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _, (way, (module, arguments, threads, settings)) in itertools.product(
        range(repeats), ways.items()
    ):
        found[way].append(_fresh(module, shapes, folder, threads, arguments, **settings))
    keys = ("tokens_per_cpu_second", "tokens_per_second", "seconds_to_first_step")
    figures: dict[str, Any] = {
        way: {key: _median(runs, key) for key in keys} for way, runs in found.items()
    }
    ratios = {way: _ratio(found[OURS], found[way]) for way in ways}
    print(
        f"\n| CPU, laptop shapes, {STEPS} steps, median of {repeats} | tokens/CPU-s | tokens/s | first step | ours / this |"
    )
    print("| --- | --- | --- | --- | --- |")
    for way, each in figures.items():
        cpu, wall, first = (each[key] for key in keys)
        print(f"| {way} | {cpu:,.0f} | {wall:,.0f} | {first:.1f} s | {ratios[way]:.2f} |")
    met = ratios[PLAIN] >= CPU_TARGET
    print(
        f"tokens a CPU-second: {ratios[PLAIN]:.2f}x the {PLAIN}, target {CPU_TARGET}x: {_word(met)};",
        end=" ",
    )
    print(
        f"{ratios[PLAIN_OUR_WAY]:.2f}x the {PLAIN_OUR_WAY}, whose model has no value embeddings, QK-norm, RoPE or Muon"
    )
    return {
        "ways": figures,
        "ratios": ratios,
        "shapes": dataclasses.asdict(shapes),
        "target_ratio": CPU_TARGET,
        "met": met,
    }


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    return statistics.median(
        a["tokens_per_cpu_second"] / b["tokens_per_cpu_second"]
        for a, b in zip(ours, theirs, strict=True)
    )


def _gpu(folder: Path, repeats: int) -> dict[str, Any]:
    """Upstream's shapes and the h100 profile's, each with an empty compile cache and then with a
    full one."""
    profile = configs.load("h100")
    local = {"LOCAL_KERNELS": kernels} if (kernels := _local_kernels(profile)) else {}
    figures: dict[str, Any] = {"card": torch.cuda.get_device_name()}
    print(f"\n| {figures['card']} | tokens/s | MFU | peak memory | first step, cold | warm |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in (("upstream", UPSTREAM), ("h100", profile.train)):
        shapes, path, cache = (
            _shapes(values, "cuda"),
            _candidate(folder, name, values),
            folder / f"cache_{name}",
        )
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
        }
        settings = {**caches, **local}
        cold = _fresh("timed_train", shapes, folder, profile.threads, [str(path)], **settings)
        warm = [
            _fresh("timed_train", shapes, folder, profile.threads, [str(path)], **settings)
            for _ in range(repeats)
        ]
        errors = _fresh(
            "timed_train", shapes, folder, profile.threads, [str(path), "--attention"], **settings
        )
        attention = errors.pop("attention")
        keys = (
            "tokens_per_second",
            "tflops_per_second",
            "peak_memory_mib",
            "seconds_to_ready",
            "seconds_to_first_step",
        )
        found: dict[str, Any] = {key: _median(warm, key) for key in keys}
        found |= {
            "mfu_percent": warm[0]["mfu_percent"] and _median(warm, "mfu_percent"),
            "flops_per_token": warm[0]["flops_per_token"],
        }
        found |= {f"cold_{key}": cold[key] for key in keys if key.startswith("seconds")}
        figures[name] = {
            **found,
            "attention": attention,
            "attention_errors": errors,
            "shapes": dataclasses.asdict(shapes),
        }
        mfu = "unknown" if found["mfu_percent"] is None else f"{found['mfu_percent']:.1f}%"
        print(
            f"| {name} | {found['tokens_per_second']:,.0f} | {mfu} | {found['peak_memory_mib'] / 1024:.1f} GiB "
            f"| {found['cold_seconds_to_first_step']:.1f} s | {found['seconds_to_first_step']:.1f} s |"
        )
    figures["exact"] = _print_attention(figures)
    ratio = figures["upstream"]["tokens_per_second"] / UPSTREAM_TOKENS_PER_SECOND
    met = ratio >= 1.0 and figures["exact"]
    print(
        f"upstream's shapes: {ratio:.2f}x of its 1.67 Mtok/s on an H100; target 1.0x and exact attention: {_word(met)}"
    )
    return {**figures, "ratio_to_upstream": ratio, "met": met}


def _print_attention(figures: dict[str, Any]) -> bool:
    """Whether every backend that ran is exact; prints which was chosen, why others were not, and
    the errors."""
    exact = True
    for name in ("upstream", "h100"):
        print(
            f"\nattention at {name}'s shapes, relative error against float32, limit {ERROR_LIMIT}:"
        )
        print("\n".join(f"  {line}" for line in figures[name]["attention"]))
        for backend, errors in figures[name]["attention_errors"].items():
            shown = (
                errors
                if isinstance(errors, str)
                else ", ".join(f"{part} {error:.1e}" for part, error in errors.items())
            )
            print(f"  {backend}: {shown}")
            exact &= not isinstance(errors, str) and all(
                error < ERROR_LIMIT for error in errors.values()
            )
    return exact


def _local_kernels(profile: configs.Profile) -> str:
    """LOCAL_KERNELS for the profile's attention kernels: what a box is given, or what this shell
    has set."""
    manifests = attention_kernels.fetch_each(
        profile.attention_kernels, state_home.locate() / "data" / "kernels", print
    )
    kernels = [NativeKernel.checked(Path(kept.path), kept.sha256) for kept in manifests]
    return ":".join(f"{kernel.repository}={kernel.folder}" for kernel in kernels) or os.environ.get(
        "LOCAL_KERNELS", ""
    )


def _word(met: bool) -> str:
    return "met" if met else "MISSED"
