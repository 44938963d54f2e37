"""A night that has kept, certified and run again: made by hand, for tests of what is told of it."""

from tasks.records import Certification, Claim, FreshRun, NightState
from tests.trials import crash, keep, make_baseline, make_fresh_run, make_state, make_trial

TRIALS = (
    keep(1, 1.62, commit="c1", summary="BIGRAM_TABLE 0 -> 16"),
    make_trial(2, commit="c2"),
    crash(3, commit="c3"),
    keep(4, 1.61, commit="c4", summary="DEPTH 3 -> 2 | 1"),
    keep(6, 1.6, commit="c6", summary="WARMDOWN_RATIO 0.5 -> 0.25"),
)
CLAIMS = (
    Claim((1,), "certified", 0.021, 4.2, 4, "z 4.20 is above 2"),
    Claim((4,), "certified", 0.0124, 2.5, 5, "z 2.50 is above 2"),
    Claim((6,), "not_shown", 0.0011, 0.2, 6, "z 0.20 after 6 runs"),
)
FOUND = Certification("c6", CLAIMS, whole_runs=5, tip="ce" * 20)


def fresh(left_out: tuple[int, ...], val_bpb: float | None, seed: int, **changes) -> FreshRun:
    holdout = None if val_bpb is None else val_bpb + 0.1
    fields = {"purpose": "end", "champion": "c6", "left_out": left_out, "seed": seed}
    return make_fresh_run(**{**fields, "val_bpb": val_bpb, "holdout_bpb": holdout, **changes})


ALL = (1, 4, 6)
END = (
    *(fresh(ALL, 1.65 + spread, seed) for seed, spread in ((11, -0.01), (12, 0.0), (13, 0.01))),
    *(fresh((), 1.61 + spread, seed) for seed, spread in ((21, -0.01), (22, 0.0), (23, 0.01))),
    *(fresh((6,), 1.615 + spread, seed) for seed, spread in ((31, -0.01), (32, 0.0), (33, 0.01))),
)


def certified_night(**changes) -> NightState:
    """Three keeps, of which two are certified; 0.05 won by the search, 0.04 with fresh seeds."""
    fields = {
        "baseline": make_baseline(start_commit="c0"),
        "champion": "c6",
        "certification": FOUND,
        "fresh_runs": END,
    }
    return make_state(*TRIALS, **{**fields, **changes})
