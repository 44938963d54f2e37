"""A long night as a researcher meets it: trials of every kind, with the patches and results that
they leave in its folder."""

import dataclasses
import functools
import json
import random
from pathlib import Path

from tasks.history import night_folder
from tasks.records import Candidate, NightSoFar, RunResult
from tasks.usage import KINDS
from tests.trials import crash, keep, make_trial

TRAIN = (Path(__file__).parents[1] / "trainer" / "train.py").read_text(encoding="utf-8")
EARLY_KIND = "data order"  # that nobody takes up again after trial EARLY
EARLY = 10
CRASHES = (
    "train_crashed",
    "startup_crashed",
    "out_of_memory",
    "eval_crashed",
    "audit_failed",
    "rejected_patch",
)
METRICS = {
    "tokens_per_second": 51234.5,
    "mfu_percent": 41.25,
    "peak_vram_mb": 45060.2,
    "num_params_M": 50.3,
    "num_steps": 953.0,
}
PATCH = """--- a/trainer/train.py
+++ b/trainer/train.py
@@ -{line},9 +{line},11 @@
 class Block(nn.Module):
     def __init__(self, config: GPTConfig, layer_idx: int, attend: Attention) -> None:
         super().__init__()
-        self.attn = CausalSelfAttention(config, layer_idx, attend)
+        self.attn = CausalSelfAttention(config, layer_idx, attend)  # candidate {number}
+        self.gate_{number} = nn.Parameter(torch.zeros(config.n_embd))
         self.mlp = MLP(config)
"""


# Lines that occur once in train.py, each in another function or class, and what that is called.
PLACES = {
    "        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head": (
        "CausalSelfAttention.__init__"
    ),
    "        x = lambdas[0] * x + lambdas[1] * x0": "Block.forward",
    "    scale = (model.config.n_embd / 768) ** -0.5  # rates were tuned at a width of 768": (
        "build_optimizers"
    ),
    "    lr, momentum, decay = rates": "muon_update",
    "    left = (1 - done) / WARMDOWN_RATIO": "lr_multiplier",
    "    torch.manual_seed(harness.seed())": "main",
}


def changed(source: str, number: int) -> tuple[str, str]:
    """The file with one statement more, and the name of the function that has it."""
    place, name = list(PLACES.items())[number % len(PLACES)]
    indent = place[: len(place) - len(place.lstrip())]
    return source.replace(f"\n{place}\n", f"\n{place}\n{indent}own_{number} = 0\n", 1), name


def make_run(**changes) -> RunResult:
    curve = tuple((step, 1024 * step, 7.6 / (1 + step / 40) + 2) for step in range(285))
    fields = {
        "status": "ok",
        "reason": "trained and scored",
        "val_bpb": 1.6,
        "claimed_bpb": 1.6,
        "audit_gap": None,
        "seconds": 20.5,
        "cpu_seconds": 20.0,
        "tokens": 291840,
        "startup_seconds": 2.0,
        "isolation": "bwrap",
        "metric_version": 1,
        "profile": "laptop",
        "seed": 1,
        "peak_memory_bytes": 3 * 2**29,
        "metrics": METRICS,
        "curve": curve,
    }
    return RunResult(**{**fields, **changes})


@functools.cache
def _usual_result() -> str:
    return _result(make_run())


def _result(run: RunResult) -> str:
    return json.dumps({"runs": [dataclasses.asdict(run)]})


def write_trial(
    folder: Path,
    number: int,
    run: RunResult | None = None,
    patch: str | None = None,
    source: str | None = None,
) -> None:
    place = folder / "trials" / str(number)
    place.mkdir(parents=True, exist_ok=True)
    (place / "patch.diff").write_text(patch or PATCH.format(number=number, line=100 + number % 50))
    (place / "result.json").write_text(_result(run) if run else _usual_result())
    if source is not None:
        (place / "train.py").write_text(source)


def make_night(*trials, folder: Path | None = None, **changes) -> NightSoFar:
    fields = {
        "tag": "nov21",
        "seed": 1,
        "next_trial": len(trials) + 1,
        "champion": Candidate.parse(TRAIN),
        "champion_bpb": 1.6,
        "baseline_bpb": 1.65,
        "baseline_knobs": {},
        "trials": trials,
        "sd": 0.0011,
        "folder": folder,
    }
    return NightSoFar(**{**fields, **changes})


def long_night(count: int, folder: Path) -> NightSoFar:
    """A mixed night: knobs on 4 trials of 10, a keep now and then, every fifth without a score. The
    same for the same count."""
    chance, trials, champion, best = random.Random(7), [], "c0", 1.65
    folder.mkdir(parents=True, exist_ok=True)
    (folder / night_folder.BASE).write_text(source := TRAIN)
    kinds = [kind for kind in KINDS if kind != EARLY_KIND]
    for number in range(1, count + 1):
        kind = EARLY_KIND if number == EARLY else chance.choice([*kinds, *4 * [None]])
        words = {
            "proposer": "llm" if kind else "tpe",
            "kind": kind,
            "summary": f"Gate each layer by its own norm and widen the MLP, variant {number}"
            if kind
            else f"MATRIX_LR 0.04 -> 0.0{number}",
            "hypothesis": "The stream grows with depth, so late layers write less than early ones; "
            * 2,
            "expected": "0.002 lower, 3% slower, no more memory",
            "commit": f"c{number}",
            "parent": champion,
        }
        if chance.random() < 0.2:
            status = chance.choice(CRASHES)
            trials.append(
                crash(
                    number,
                    status=status,
                    reason="stopped: ended while training: RuntimeError: shapes [8, 128], [8, 64]",
                    **words,
                )
            )
        elif chance.random() < 0.1:
            best -= 0.0021
            trials.append(keep(number, best, **{**words, "z": chance.uniform(2, 5)}))
            champion = f"c{number}"
            source, _ = changed(source, number)
        else:
            z = chance.gauss(-1.5, 1.5)
            trials.append(make_trial(number, val_bpb=best - z * 0.0011, **{**words, "z": z}))
        write_trial(folder, number, source=source)
    champion_now = Candidate.parse(source)
    return make_night(*trials, folder=folder, champion=champion_now, champion_bpb=best)
