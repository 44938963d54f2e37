"""What a baseline's scores depend on besides the hardware. Only scores with equal facts compare."""

from __future__ import annotations

import hashlib
from pathlib import Path

from configs import Profile
from tasks.judge.workplace import FIXED_FILES, TRAINER
from tasks.records import Bench, Candidate
from trainer import prepare


def baseline_facts(candidate: Candidate, bench: Bench) -> dict[str, str]:
    """What a baseline's scores depend on besides the hardware: the parts of its cache key."""
    kernels = {Path(kernel.path).stem: kernel.sha256 for kernel in bench.dataset.attention_kernels}
    return {
        **facts_before_data(bench.profile),
        "train.py": hashlib.sha256(candidate.source.encode()).hexdigest(),
        "dataset": bench.dataset.fingerprint,
        **kernels,
        "isolation": bench.isolation,
    }


def facts_before_data(profile: Profile) -> dict[str, str]:
    """Those of `baseline_facts` that are known before the data is prepared."""
    trainer = {
        name: hashlib.sha256((TRAINER / name).read_bytes()).hexdigest() for name in FIXED_FILES
    }
    return {
        **trainer,
        "budget": profile.budget.model_dump_json(),
        "metric": str(prepare.METRIC_VERSION),
    }
