"""The straightforward packer: a list scan for each pick, slow and plainly right. packing.pack_rows
must do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Document = Sequence[int]


def _batches(
    documents: Sequence[Document], batch: int, epochs: int
) -> Iterator[Sequence[Document]]:
    for _ in range(epochs):
        for first in range(0, len(documents), batch):
            yield documents[first : first + batch]


def pack(
    documents: Sequence[Document], T: int, *, buffer: int, batch: int, epochs: int
) -> list[list[int]]:
    """Rows of T + 1 tokens: best fit from a buffer of documents, else the shortest one cropped,
    whose tail waits behind the others; ties to the oldest. None counts as longer than a row."""
    rows: list[list[int]] = []
    row: list[int] = []
    waiting: list[Document] = []
    arriving = _batches(documents, batch, epochs)

    def length(document: Document) -> int:
        return min(len(document), T + 1)

    while True:
        while len(waiting) < buffer and (more := next(arriving, None)) is not None:
            waiting.extend(more)
        if not waiting:
            return rows
        room = T + 1 - len(row)
        fitting = [document for document in waiting if length(document) <= room]
        # both return the first of equals
        pick = max(fitting, key=length) if fitting else min(waiting, key=length)
        del waiting[next(i for i, document in enumerate(waiting) if document is pick)]
        row.extend(pick[:room])
        if len(pick) > room:
            # from its last token in this row on
            waiting.append(pick[room - 1 :])
        if len(row) == T + 1:
            rows.append(row)
            row = []
