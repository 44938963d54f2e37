"""Text of ClimbMix's shape for machines that cannot fetch it: documents of very unequal length,
words as rare as real ones.

Zipf's law in two regimes (Ferrer i Cancho and Sole 2001): 1/rank among the common words, steeper
beyond. The tail is set so that 17 million words are about 250,000 different ones, as in text8, the
first 100 MB of Wikipedia: how many different words there are is what a tokenizer's training and an
encoder's cache feel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = 400_000
COMMON, TAIL = 6000, 1.7  # words of the first regime; exponent of the second
ONSETS = [*"bcdfghjklmnprstvwz", "st", "tr", "ch", "sh", "pl"]
VOWELS = [*"aeio", "u", "ea", "ou", "ai", "ee", "io"]
ENDS = ["", "", *"nrstlm", "nd", "ng", "ck", "st"]
AT_A_TIME = 400_000


def write_shard(path: Path, characters: int, seed: int = 0) -> int:
    """A shard as ClimbMix's are written: row groups of 1024, zstd, no dictionary, no statistics.
    Returns its characters."""
    texts = documents(characters, np.random.default_rng(seed))
    table = pa.table({"text": texts})
    pq.write_table(
        table,
        path,
        row_group_size=1024,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )
    return sum(map(len, texts))


def documents(characters: int, random: np.random.Generator) -> list[str]:
    """At least so many characters, in documents whose word counts are log-normal (median 300)."""
    words, found, written = _words(random), list[str](), 0
    ranks = np.arange(WORDS)
    tail = np.maximum(ranks / COMMON, 1) ** (TAIL - 1)
    frequency = np.cumsum(1 / (ranks + 2.7) / tail)
    while written < characters:
        drawn = np.searchsorted(frequency / frequency[-1], random.random(AT_A_TIME))
        prose = _prose([words[i] for i in drawn], random.random(AT_A_TIME).tolist())
        first = 0
        while first < len(prose):
            length = max(20, int(random.lognormal(5.7, 1.0)))
            found.append(" ".join(prose[first : first + length]))
            first, written = first + length, written + len(found[-1])
    return found


def _prose(words: list[str], chance: list[float]) -> list[str]:
    """Sentences, commas, paragraphs and a number now and then."""
    written, starts = [], True
    for word, x in zip(words, chance, strict=True):
        word = str(int(x * 1e8) % 5000) if x < 0.002 else word
        word = word.capitalize() if starts else word
        starts = 0.866 < x <= 0.93
        written.append(word + ("," if x > 0.93 else "." if x > 0.87 else ".\n\n" if starts else ""))
    return written


def _words(random: np.random.Generator) -> list[str]:
    """WORDS different words of one to four syllables, the frequent ones mostly short."""
    found: dict[str, None] = {}
    while len(found) < WORDS:
        syllables = [
            np.array(part, object)[random.integers(len(part), size=(4, WORDS))]
            for part in (ONSETS, VOWELS, ENDS)
        ]
        joined = syllables[0] + syllables[1] + syllables[2]
        counts = random.integers(1, 5, WORDS)
        found |= dict.fromkeys("".join(joined[: counts[i], i]) for i in range(WORDS))
    words = sorted(list(found)[:WORDS], key=len)
    return [words[i] for i in np.argsort(np.arange(WORDS) + random.normal(0, WORDS / 6, WORDS))]
