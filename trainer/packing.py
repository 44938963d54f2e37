"""How documents become training rows: best fit, in the order of karpathy/autoresearch's loader.

A plan says which stretch of which token stream goes where; rows are then copied by the plan, a
block at a time, so that neither tokens nor rows need to fit in memory. Unlike upstream's loader, it
never searches a list. numpy and the standard library only.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

PACKER_VERSION = 1  # part of a dataset's fingerprint: raise it when plans change
BLOCK_TOKENS = 1 << 22  # of the rows in memory at a time: 8 MiB

Tokens = npt.NDArray[np.uint16]
# First token and number of tokens of each pick; end to end, the picks are the rows.
Plan = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def plan_rows(
    lengths: npt.NDArray[np.int32], T: int, *, buffer: int = 1000, batch: int = 128, epochs: int = 1
) -> Plan:
    """The plan of the rows of T+1 tokens, for documents of these `lengths`.

    Before each pick the buffer is refilled, `batch` documents at a time, until it holds at least
    `buffer`. The pick is the longest document that fits the rest of the row; if none fits, the
    shortest is cropped to fill it and its tail is dropped. The oldest wins a tie.

    Upstream's stream never ends. This one ends after `epochs` passes: the buffer is drained by the
    same rule, and a last row that cannot be filled is dropped. A cached file holds one pass, and
    its reader wraps around modulo n. Up to the draining the rows are upstream's if every shard
    holds whole batches: upstream begins a new batch at every row group.
    """
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths).tolist()
    sizes = lengths.tolist()
    firsts: list[int] = []
    counts: list[int] = []
    # Waiting documents that fit into a row, by length, in order of arrival.
    waiting: dict[int, deque[int]] = {}
    # The longer ones, a heap of (length, order of arrival, document).
    longer: list[tuple[int, int, int]] = []
    # A bit for each length in `waiting`: the longest that fits and the shortest are found by a bit
    # scan. A longer document has no bit: one of 10 MB would make this a number of as many bits.
    present, held, arrived, room = 0, 0, 0, T + 1
    total = len(sizes) * epochs
    while True:
        while held < buffer and arrived < total:
            first = arrived % len(sizes)
            # A batch ends with its pass, as upstream's does.
            for document in range(first, min(first + batch, len(sizes))):
                if sizes[document] > T + 1:
                    heapq.heappush(longer, (sizes[document], arrived, document))
                else:
                    waiting.setdefault(sizes[document], deque()).append(document)
                    present |= 1 << sizes[document]
                arrived, held = arrived + 1, held + 1
        if not held:
            break
        if present:
            fitting = present & ((2 << room) - 1)
            length = (fitting if fitting else present & -present).bit_length() - 1
            queue = waiting[length]
            firsts.append(starts[queue.popleft()])
            if not queue:
                del waiting[length]
                present ^= 1 << length
        else:
            length, _, document = heapq.heappop(longer)
            firsts.append(starts[document])
        counts.append(min(length, room))
        held -= 1
        room = room - counts[-1] or T + 1
    left = sum(counts) % (T + 1)
    while left:  # picks of a last row that could not be filled
        left -= counts.pop()
        firsts.pop()
    return np.array(firsts, np.int64), np.array(counts, np.int64)


def blocks(streams: Sequence[Tokens], plan: Plan, T: int) -> Iterator[Tokens]:
    """The planned rows in order, uint16 [at most BLOCK_TOKENS / (T+1), T+1] at a time.

    `streams` are the token streams of the shards, memory maps too: each is read from beginning to
    end. A block is overwritten by the next.
    """
    ends = np.cumsum([len(stream) for stream in streams])
    shards = np.searchsorted(ends, plan[0], side="right")
    offsets = (plan[0] - np.concatenate([[0], ends[:-1]])[shards]).tolist() if len(streams) else []
    flats = [np.asarray(stream) for stream in streams]  # cheaper to slice than a memory map
    block = np.empty((max(BLOCK_TOKENS // (T + 1), 1), T + 1), np.uint16)
    flat, filled = block.reshape(-1), 0
    for shard, start, count in zip(shards.tolist(), offsets, plan[1].tolist(), strict=True):
        flat[filled : filled + count] = flats[shard][start : start + count]
        filled += count
        if filled == flat.size:
            yield block
            filled = 0
    if filled:
        yield block[: filled // (T + 1)]


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
    """All rows at once, uint16 [n, T+1], each begins with BOS: see `plan_rows`."""
    plan = plan_rows(lengths, T, buffer=buffer, batch=batch, epochs=epochs)
    rows, n = np.empty((rows_in(plan, T), T + 1), np.uint16), 0
    for block in blocks(streams, plan, T):
        rows[n : n + len(block)] = block
        n += len(block)
    return rows
