"""A model's own estimate, however it is written; nonsense is none."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.proposers.gain import LEAST_SD, MOST, estimate_of


@pytest.mark.parametrize(
    ("words", "gain", "sd"),
    [
        ("0.004 +- 0.003", 0.004, 0.003),
        ("0.004 ± 0.003 bits per byte", 0.004, 0.003),
        ("about 0.004 (sd 0.002)", 0.004, 0.002),
        ("+0.004 +/- .003", 0.004, 0.003),
        ("4e-3", 0.004, 0.004),  # as unsure as it is large
        ("0,004", 0.004, 0.004),
        ("0.004bpb. Small, but sure.", 0.004, 0.004),
        ("-0.004 val_bpb", 0.004, 0.004),
        ("\u22120.004 ± 0.001 bpb", 0.004, 0.001),
        ("-0.001 +- 0.002", -0.001, 0.002),  # worse, and simpler
        ("0.002 to 0.006", 0.004, 0.002),
        ("between 0.002 and 0.006", 0.004, 0.002),
        ("0.002-0.006", 0.004, 0.002),
        ("0.002\u20130.006", 0.004, 0.002),
        ("-0.006 to -0.002 val_bpb", 0.004, 0.002),
        ("0", 0.0, LEAST_SD),
        ("0.004 +- 0", 0.004, LEAST_SD),
        ("0.01 +- 99", 0.01, MOST),
    ],
)
def test_a_gain_and_its_uncertainty(words, gain, sd):
    estimate = estimate_of(words)
    assert estimate is not None
    assert [estimate.gain, estimate.sd] == pytest.approx([gain, sd])


@pytest.mark.parametrize(
    "words",
    ["", "... +- ...", "a little", "0.5%", "1 percent", "2 layers", "12", "1e99", "nan", "x0.004"],
)
def test_what_is_no_gain(words):
    assert estimate_of(words) is None


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text() | st.text(st.sampled_from("0123456789.+-± eto"), max_size=60))
def test_any_words_are_a_bounded_estimate_or_none(words):
    estimate = estimate_of(words)
    if estimate is not None:
        assert math.isfinite(estimate.gain)
        assert abs(estimate.gain) <= MOST
        assert LEAST_SD <= estimate.sd <= MOST
