"""What the baseline claimed, read for other tokens and other rows."""

import numpy as np
import pytest

from tasks.judge.reference import Reference

NATS = np.array([1.0, 4.0, 0.5], np.float32)
ENDS = np.array([2, 3, 7])  # tokens of 2, 1 and 4 bytes


def test_the_same_tokens_have_the_same_nats_however_long_the_rows_are():
    assert Reference(64, NATS).at(ENDS, ENDS) == pytest.approx(NATS)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [([7], [5.5]), ([1, 2, 3, 5, 7], [0.5, 0.5, 4.0, 0.25, 0.25]), ([5, 7], [5.25, 0.25])],
)
def test_the_nats_of_a_token_are_spread_over_its_bytes(ends, expected):
    assert Reference(64, NATS).at(np.array(ends), ENDS) == pytest.approx(expected)


def test_a_reference_of_another_text_is_our_failure():
    with pytest.raises(ValueError, match="length"):
        Reference(64, NATS).at(ENDS, ENDS[:2])


def test_it_is_the_mean_of_several_runs_and_is_read_as_it_was_written(tmp_path):
    runs = [Reference(64, NATS), Reference(64, 3 * NATS)]
    with (tmp_path / "claims").open("wb") as file:
        Reference.mean(runs).save(file)
    kept = Reference.load(tmp_path / "claims")
    assert kept.vocab_size == 64
    assert kept.nats == pytest.approx(2 * NATS)
    assert kept.nats.dtype == np.float32
