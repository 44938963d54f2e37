"""How documents become training rows: best fit, in the order of karpathy/autoresearch's loader, without its list scans.

A plan says which stretch of which token stream goes where; rows are then copied by it, a block at a time, so that
neither the tokens nor the rows need to fit in memory. numpy and the standard library only.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

PACKER_VERSION = 1  # part of a dataset's fingerprint: raise it when a plan gives other rows
BLOCK_TOKENS = 1 << 22  # of the rows that are held at a time: 8 MiB

Tokens = npt.NDArray[np.uint16]
Plan = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.int64]
]  # first token and count of each pick: end to end, the rows


def plan_rows(
    lengths: npt.NDArray[np.int32], T: int, *, buffer: int = 1000, batch: int = 128, epochs: int = 1
) -> Plan:
    """Which stretch of the stream fills which place of the rows of T+1 tokens, for documents of these `lengths`.

    Before each pick the buffer is refilled, `batch` documents at a time, until it holds at least `buffer`. The pick is
    the longest document that fits what is left of the row; where none fits, the shortest one is cropped to fill it and
    its tail is dropped. Ties go to the oldest.

    Upstream's stream never ends. Here it ends after `epochs` passes: then the buffer is drained by the same rule, and a
    last row that cannot be filled is dropped. A cached file holds one pass, and its reader wraps around modulo n. Up to
    the draining the rows are upstream's, given shards of whole batches: upstream starts a new one at every row group.
    """
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths).tolist()
    sizes = lengths.tolist()
    firsts: list[int] = []
    counts: list[int] = []
    waiting: dict[
        int, deque[int]
    ] = {}  # of those that fit a row, by length: documents in order of arrival
    longer: list[
        tuple[int, int, int]
    ] = []  # of the others, a heap: length, place of arrival, document
    # One bit for each length that fits and is waiting: the longest that fits and the shortest are bit scans, not a list
    # scan. A long document has no bit, as every pick would pay for one of 10 MB with a number of that many bits.
    present, held, arrived, room = 0, 0, 0, T + 1
    total = len(sizes) * epochs
    while True:
        while held < buffer and arrived < total:
            first = arrived % len(sizes)
            for document in range(
                first, min(first + batch, len(sizes))
            ):  # a batch ends with its pass, as upstream's
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
    while left:  # picks of the last row, which nothing is left to fill
        left -= counts.pop()
        firsts.pop()
    return np.array(firsts, np.int64), np.array(counts, np.int64)


def blocks(streams: Sequence[Tokens], plan: Plan, T: int) -> Iterator[Tokens]:
    """The planned rows in order, uint16 [at most BLOCK_TOKENS / (T+1), T+1] at a time.

    `streams` are the token streams of the shards: memory maps do, as each is read from its begin to its end. A block
    is overwritten by the next one.
    """
    ends = np.cumsum([len(stream) for stream in streams])
    shards = np.searchsorted(ends, plan[0], side="right")
    offsets = (plan[0] - np.concatenate([[0], ends[:-1]])[shards]).tolist() if len(streams) else []
    flats = [
        np.asarray(stream) for stream in streams
    ]  # slices of a plain view cost less than a memory map's
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
    """All rows at once, uint16 [n, T+1], every one led by BOS: see `plan_rows`."""
    plan = plan_rows(lengths, T, buffer=buffer, batch=batch, epochs=epochs)
    rows, n = np.empty((rows_in(plan, T), T + 1), np.uint16), 0
    for block in blocks(streams, plan, T):
        rows[n : n + len(block)] = block
        n += len(block)
    return rows
