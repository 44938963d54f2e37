"""How documents become training rows: best fit, after the rule of karpathy/autoresearch's loader,
but nothing is dropped: what a row cannot hold of a document becomes a further piece of it.

A plan says which stretch of which token stream goes where; rows are then copied by the plan, a
block at a time, so that neither tokens nor rows need to fit in memory. Unlike upstream's loader, it
never searches a list. numpy and the standard library only.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

PACKER_VERSION = 2  # part of a dataset's fingerprint: raise it when plans change
BLOCK_TOKENS = 1 << 22  # of the rows in memory at a time: 8 MiB
BLOCK_PICKS = 1 << 16  # of a plan that are Python's numbers at a time

Tokens = npt.NDArray[np.uint16]
# First token and number of tokens of each pick; end to end, the picks are the rows.
Plan = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class _Waiting:
    """Pieces of documents, (first token, number of tokens), in the order of a pick.

    One that is longer than a row counts as just as long. A bit is set for each length that is
    there: the longest that fits and the shortest are found by a bit scan.
    """

    def __init__(self, row: int) -> None:
        self.row = row  # tokens
        self.present = 0
        self.by_length: dict[int, deque[tuple[int, int]]] = {}

    def add(self, first: int, size: int) -> None:
        length = min(size, self.row)
        self.by_length.setdefault(length, deque()).append((first, size))
        self.present |= 1 << length

    def pick(self, room: int) -> tuple[int, int]:
        """Takes out the longest piece that fits, else the shortest; the oldest of equals."""
        # No wider than what is there: a row may be far longer than every document.
        fitting = self.present & ((2 << min(room, self.present.bit_length())) - 1)
        length = (fitting or self.present & -self.present).bit_length() - 1
        queue = self.by_length[length]
        piece = queue.popleft()
        if not queue:
            del self.by_length[length]
            self.present ^= 1 << length
        return piece


def plan_rows(
    lengths: npt.NDArray[np.int32], T: int, *, buffer: int = 1000, batch: int = 128, epochs: int = 1
) -> Plan:
    """The plan of the rows of T+1 tokens, for documents of these `lengths`.

    Before each pick the buffer is refilled, `batch` documents at a time, until it holds at least
    `buffer`. The pick is the longest document that fits the rest of the row; if none fits, the
    shortest is cropped to fill it. The oldest wins a tie. So far this is upstream's rule, which
    drops what was cropped; here the tail goes back to the end of the buffer. It begins with the
    last token of the piece before, so that each of its tokens is a target once, as when rows are
    cut for scoring. A document longer than a row counts as one of T+1 tokens.

    Upstream's stream never ends. This one ends after `epochs` passes: the buffer is drained by the
    same rule, and a last row that cannot be filled is dropped. A cached file holds one pass, and
    its reader wraps around modulo n.
    """
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths).tolist()
    sizes = lengths.tolist()
    firsts, counts = array("q"), array("q")
    waiting = _Waiting(T + 1)
    held, arrived, room = 0, 0, T + 1
    total = len(sizes) * epochs
    while True:
        while held < buffer and arrived < total:
            first = arrived % len(sizes)
            # A batch ends with its pass, as upstream's does.
            stop = min(first + batch, len(sizes))
            for document in range(first, stop):
                waiting.add(starts[document], sizes[document])
            arrived, held = arrived + stop - first, held + stop - first
        if not held:
            break
        first, size = waiting.pick(room)
        count = min(size, room)
        firsts.append(first)
        counts.append(count)
        if count < size:
            waiting.add(first + count - 1, size - count + 1)
        else:
            held -= 1
        room = room - count or T + 1
    if room <= T:  # picks of a last row that could not be filled
        left = T + 1 - room
        while left:
            left -= counts.pop()
            firsts.pop()
    return np.frombuffer(firsts, np.int64), np.frombuffer(counts, np.int64)


def blocks(streams: Sequence[Tokens], plan: Plan, T: int) -> Iterator[Tokens]:
    """The planned rows in order, uint16 [at most BLOCK_TOKENS / (T+1), T+1] at a time.

    `streams` are the token streams of the shards, memory maps too: each is read from beginning to
    end. A block is overwritten by the next.
    """
    ends = np.cumsum([len(stream) for stream in streams], dtype=np.int64)
    flats = [np.asarray(stream) for stream in streams]  # cheaper to slice than a memory map
    block = np.empty((max(BLOCK_TOKENS // (T + 1), 1), T + 1), np.uint16)
    flat, filled = block.reshape(-1), 0
    for shard, start, count in _picks(plan, ends):
        flat[filled : filled + count] = flats[shard][start : start + count]
        filled += count
        if filled == flat.size:
            yield block
            filled = 0
    if filled:
        yield block[: filled // (T + 1)]


def _picks(plan: Plan, ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Shard, first token in it and number of tokens of each pick; the shards end at `ends`."""
    for begin in range(0, len(plan[0]), BLOCK_PICKS):
        firsts, counts = (each[begin : begin + BLOCK_PICKS] for each in plan)
        shards = np.searchsorted(ends, firsts, side="right")
        offsets = firsts - np.concatenate([[0], ends[:-1]])[shards]
        yield from zip(shards.tolist(), offsets.tolist(), counts.tolist(), strict=True)


def share_held(plan: Plan, lengths: npt.NDArray[np.int32]) -> float:
    """The share of the tokens of all documents that is in the rows of a plan of one pass."""
    firsts, counts = plan
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    documents = np.searchsorted(starts, firsts, side="right") - 1
    is_begun = np.zeros(len(lengths), np.bool_)
    is_begun[documents[starts[documents] == firsts]] = True
    # A further piece repeats one token of the piece before.
    held = counts.sum() - len(counts) + np.count_nonzero(is_begun)
    return float(held / lengths.sum(dtype=np.int64))


def rows_in(plan: Plan, T: int) -> int:
    return int(plan[1].sum()) // (T + 1)


def pack_rows(
    streams: Sequence[Tokens],
    lengths: npt.NDArray[np.int32],
    T: int,
    *,
    buffer: int = 1000,
    batch: int = 128,
    epochs: int = 1,
) -> Tokens:
    """All rows at once, uint16 [n, T+1]: see `plan_rows`."""
    plan = plan_rows(lengths, T, buffer=buffer, batch=batch, epochs=epochs)
    rows, n = np.empty((rows_in(plan, T), T + 1), np.uint16), 0
    for block in blocks(streams, plan, T):
        rows[n : n + len(block)] = block
        n += len(block)
    return rows
