"""What a model expects of its own idea, from the words of its GAIN header.

Bits per byte, positive is better: "0.004 +- 0.003", "about 0.004", "0.002 to 0.006" (its ends are a
standard deviation away from its middle), "-0.004 val_bpb" (the change of val_bpb, so a gain).
"""

from __future__ import annotations

import re

from tasks.records import Estimate

MOST = 1.0  # bits per byte; larger is no estimate, as a whole model has 1 to 2
LEAST_SD = 1e-4
LONGEST = 200  # characters read
NUMBER = r"[-+\u2212]?(?:\d{1,6}(?:\.\d{0,12})?|\.\d{1,12})(?:e[-+]?\d{1,2})?(?!\.?\d|(?!bpb)[a-z])"
PLUS_MINUS = r"\u00b1|\+\s?/?\s?[-\u2212]|\\pm|plus or minus|[(,]?\s*(?:sd|sigma)\s*[=:]?"
RANGE = r"to|up to|and|\.{2,3}|[-\u2010-\u2015]"
FOUND = re.compile(
    rf"(?<![\w.])(?P<first>{NUMBER})(?:\s*(?:(?P<sd>{PLUS_MINUS})|{RANGE})\s*(?P<second>{NUMBER}))?",
    re.IGNORECASE,
)
OF_THE_SCORE = re.compile(r"bpb|bits per byte", re.IGNORECASE)


def estimate_of(words: str) -> Estimate | None:
    """The gain and its standard deviation; None for words without a number that can be one.

    An estimate that says nothing of its uncertainty is as unsure as it is large.
    """
    words = re.sub(r"(?<=\d),(?=\d)", ".", words[:LONGEST])
    found = FOUND.search(words)
    if found is None or "%" in words or "percent" in words.lower():
        return None
    first = _number(found["first"])
    second = None if found["second"] is None else _number(found["second"])
    if found["sd"] or second is None:
        gain, sd = first, abs(first if second is None else second)
    else:
        gain, sd = (first + second) / 2, abs(first - second) / 2
    if gain < 0 and OF_THE_SCORE.search(words):
        gain = -gain
    if abs(gain) > MOST:
        return None
    return Estimate(gain, min(max(sd, LEAST_SD), MOST))


def _number(text: str) -> float:
    return float(text.replace("\u2212", "-"))
