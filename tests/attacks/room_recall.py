"""Room "peeking", another way in: an audit box that remembers what it was asked before.

It sees a prefix, answers, and is asked about other rows later; what it was shown may serve it as
training data. That gains nothing if a claim box cannot tell what its twin will have seen by the time
it is asked. Where the order of the questions can be foreseen, both can learn the same from the
validation text, and the audit agrees with the claims.
"""

from __future__ import annotations

from tests.attacks.arena import Attack, before_torch
from tests.attacks.room_time import JUNK

ATTACKS = [
    Attack(
        name="learns from the audit's questions",
        room="peeking",
        what="trains on the validation rows alone, in the order in which the audit shows them to its twin",
        edits=before_torch(
            JUNK
            + """
import numpy as np
link.send({"msg": "ready", "vocab_size": 64, "sequence_length": 32, "batch_rows": 16})
counts = np.full((64, 64), 0.05)
def learn(rows): np.add.at(counts, (rows[:, :15].ravel(), rows[:, 1:16].ravel()), 1.0)
def logits(tokens): return np.log(counts / counts.sum(1, keepdims=True)).astype("<f4")[tokens]
if role == "claim":
    n = link.read("nll")["rows"]
    rows = np.frombuffer(link.read_bytes(n * 33 * 2), "<u2").reshape(n, 33)
    nats, columns = np.empty((n, 32), "<f4"), -(-n // 16)
    for column in range(columns):
        own = rows[column::columns]
        nats[column::columns] = -np.take_along_axis(logits(own[:, :-1]), own[:, 1:, None].astype(int), 2)[..., 0]
        learn(own)
    link.send_bytes(nats.tobytes())
    link.wait_for_the_end()
seen = None
while True:
    n = link.read("logits")["rows"]
    prefixes, at = np.frombuffer(link.read_bytes(n * 64), "<u2").reshape(n, 32), np.frombuffer(link.read_bytes(n * 4), "<i4")
    if seen is not None and (len(seen) != n or (prefixes[:, 0] != seen[:, 0]).any()): learn(seen)
    seen = prefixes
    link.send_bytes(logits(prefixes[np.arange(n), at]).tobytes())
"""
        ),
        status="audit_failed",
        reason="nats per token less",
    ),
]
