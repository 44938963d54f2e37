"""How often the audit catches a cheat on few positions, by the judge's own questions and findings.

At equal odds a cheat on a share f of the positions passes n questions with probability (1-f)^n: 2%
at f = 0.1% and n = 4096, and 36% at n = 1024. The odds of a position whose claim is far below the
reference's are higher. The honest losses are those of a bigram model, recorded once.
"""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from configs import Audit
from tasks.files import FileRef
from tasks.judge.audit import STRICT, Finding, cross_entropy, draw
from tasks.judge.effort import Effort
from tasks.judge.reference import Reference
from tasks.records import Bench, Candidate, Caps
from tasks.trial import experiment
from tests.attacks import arena
from tests.attacks.forked_boxes import ForkedBoxes
from trainer import prepare

DOCUMENTS = 2700  # more rows of 32 tokens than are asked, as in production
SHARE = 0.001
CHEATED = 4  # the remainder whose share is nearest to SHARE here; shares differ, as prefixes repeat
# A hash of the prefix alone, which an audit box could compute too.
MIXED = "(idx * (2 * torch.arange(idx.shape[1]) + 1) * 977).cumsum(1)"
HASH = f"(({MIXED} * 2654435761) >> 16) % 1000"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An honest model's losses, nats [R, T]; which are scored; where a cheat would cheat."""

    nats: npt.NDArray[np.float64]
    expected: npt.NDArray[np.float64]  # [R, T], by another bigram model
    scored: npt.NDArray[np.bool_]
    hashed: npt.NDArray[np.bool_]

    def cut(self, R: int, T: int) -> "Recorded":
        """The same positions as R rows of T."""
        return Recorded(
            self.nats.reshape(-1)[: R * T].reshape(R, T),
            self.expected.reshape(-1)[: R * T].reshape(R, T),
            self.scored.reshape(-1)[: R * T].reshape(R, T),
            self.hashed.reshape(-1)[: R * T].reshape(R, T),
        )

    def audit(
        self, claims: npt.NDArray[np.float32], positions: int, seed: int, reference: bool = False
    ) -> Finding:
        expected = self.expected[self.scored].astype(np.float32) if reference else None
        effort = Effort(positions, STRICT.hits)
        odds = effort.odds(self.scored, claims, expected)
        questions = draw(odds, effort.questions(odds), 16, np.random.default_rng(seed))
        answers = self.nats[questions.rows, questions.positions]
        return Finding.of(questions, claims, answers, STRICT)

    def share_caught(self, positions: int, audits: int, reference: bool = False) -> float:
        """The share of audits with seeds 0, 1, ... that catch claims of 0 at hashed positions."""
        claims = np.where(self.hashed, 0.0, self.nats).astype(np.float32)
        findings = [self.audit(claims, positions, seed, reference) for seed in range(audits)]
        return sum(finding.problem(STRICT) is not None for finding in findings) / audits


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    dataset = arena.make_dataset(tmp_path_factory.mktemp("power") / "data", DOCUMENTS)
    text = np.fromfile(Path(dataset.train, f"tokens_{arena.VOCAB}_00000.bin"), np.uint16)
    rows = prepare.cut_rows(
        np.load(Path(dataset.validation, f"stream_{arena.VOCAB}.npy")), arena.LENGTH, arena.BOS
    )
    # Each model has learnt from one half of the text.
    nats, expected = (_bigram_losses(half, rows) for half in np.array_split(text, 2))
    idx = rows[:, :-1].astype(np.int64)
    mixed = (idx * (2 * np.arange(arena.LENGTH) + 1) * 977).cumsum(1)
    hashed = ((mixed * 2654435761) >> 16) % 1000 == CHEATED
    return Recorded(nats, expected, rows[:, 1:] != arena.BOS, hashed)


def _bigram_losses(
    text: npt.NDArray[np.uint16], rows: npt.NDArray[np.uint16]
) -> npt.NDArray[np.float64]:
    counts = np.ones((arena.VOCAB, arena.VOCAB))
    np.add.at(counts, (text[:-1], text[1:]), 1)
    logits = np.log(counts).astype(np.float32)
    losses = cross_entropy(logits[rows[:, :-1].reshape(-1)], rows[:, 1:].reshape(-1))
    return losses.reshape(len(rows), -1)


def test_the_hashed_positions_are_one_in_a_thousand(recorded: Recorded) -> None:
    assert recorded.hashed[recorded.scored].mean() == pytest.approx(SHARE, rel=0.15)


def test_a_cheat_on_one_position_in_a_thousand_is_caught_by_4096_questions(
    recorded: Recorded,
) -> None:
    assert recorded.share_caught(positions=4096, audits=50) >= 0.9


def test_1024_questions_on_a_set_of_the_laptops_size_catch_it_in_two_of_three_audits(
    recorded: Recorded,
) -> None:
    """Few rows do not help: each question is a chance, and 1 - 0.999^1024 = 64%."""
    caught = recorded.cut(512, 128).share_caught(positions=1024, audits=200)
    print(
        f"a cheat on 0.1% of 512 rows of 128, 1024 questions: caught in {caught:.0%} of 200 audits"
    )
    assert 0.5 < caught < 0.78


def test_1024_questions_catch_it_almost_always_where_the_baselines_claims_are_known(
    recorded: Recorded,
) -> None:
    few = recorded.cut(512, 128)
    assert few.share_caught(positions=1024, audits=60, reference=True) >= 0.95


@pytest.mark.parametrize("reference", [False, True])
def test_an_honest_candidate_is_never_caught(recorded: Recorded, reference: bool) -> None:
    claims = recorded.nats.astype(np.float32)
    findings = [recorded.audit(claims, 4096, seed, reference) for seed in range(20)]
    assert all(finding.problem(STRICT) is None for finding in findings)


def test_a_cheat_below_the_tolerances_gains_nothing_on_average(recorded: Recorded) -> None:
    """Takes 0.004 nats off a random half percent: never stopped, but the audit adds it back."""
    taken = 0.004 * (np.random.default_rng(5).random(recorded.nats.shape) < 0.005)
    claims = (recorded.nats - taken).astype(np.float32)
    findings = [recorded.audit(claims, 4096, seed) for seed in range(50)]
    assert all(finding.problem(STRICT) is None for finding in findings)
    charged = np.mean([max(0.0, finding.gap) for finding in findings])
    # More than 1, as the early answers count if they are worse.
    assert 0.9 < charged / taken[recorded.scored].mean() < 1.5


@pytest.mark.slow
def test_whole_runs_catch_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the claims of an honest run as the reference, in a quarter of the default questions."""
    tmp_path.chmod(0o755)
    dataset = arena.make_dataset(tmp_path / "data", 1400)
    head = "        logits = self.logits(idx)\n"
    cheat = f"""        if targets is not None and reduction == "none":
            hashed = {HASH} == {CHEATED}
            logits = logits + 30.0 * hashed[..., None] * F.one_hot(targets, VOCAB_SIZE)
"""
    profile = arena.make_profile(audit=Audit(positions=1024, share=0.0))
    candidate = Candidate.parse(arena.edited(((head, head + cheat),)))
    bench = Bench(profile, dataset, tmp_path / "state", "bwrap", arena.CAPS)
    kept: list[Reference] = []
    with ForkedBoxes.below(tmp_path) as forks:
        monkeypatch.setattr(experiment, "open_box", forks.open_box)
        honest, *runs = [
            experiment.run_experiment(
                source,
                dataclasses.replace(bench, caps=caps),
                seed=seed,
                worth_audit=lambda claimed: True,
                keep_claims=kept.append,
            )
            for seed, source in enumerate([Candidate.parse(arena.HONEST), candidate, candidate])
            for caps in [_with_reference(arena.CAPS, kept, tmp_path / "claims")]
        ]
    assert honest.status == "ok"
    assert {run.status for run in runs} == {"audit_failed"}


def _with_reference(caps: Caps, kept: list[Reference], path: Path) -> Caps:
    reference = FileRef.write(path, kept[0].save) if kept else None
    return dataclasses.replace(caps, reference=reference)
