"""Room "training while scored": candidates whose scoring boxes go on training, claim box and audit box
alike, so that the two agree.

The training rows ride in the checkpoint. What these boxes may spend is limited by what the honest
candidate's have cost in the same suite.
"""

from __future__ import annotations

from configs import Budget
from tests.attacks.arena import Attack, Room

ROOM: Room = "training while scored"
STEPS = 1200
FINISH = "    harness.finish(model.state_dict(), steps=step)\n"
LOADED = "    model.load_state_dict(torch.load(path, weights_only=True))\n    return model\n"
HEAD = "        logits = self.logits(idx)\n"
MAIN = "def main():\n"
BRING_ROWS = (
    FINISH,
    f"""\
    state = dict(model.state_dict(), rows=rows[torch.arange({STEPS} * DEVICE_BATCH_SIZE) % len(rows)].short())
    harness.finish(state, steps=step)
""",
)
ABLE_TO_TRAIN = (
    MAIN,
    f"""\
def train_on(model, rows):
    torch.set_num_threads(1)
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = Adam(model.parameters())
        for step in range({STEPS}):
            batch = rows[step * DEVICE_BATCH_SIZE : (step + 1) * DEVICE_BATCH_SIZE].long()
            loss = F.cross_entropy(model.logits(batch[:, :-1].clone()).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step(LEARNING_RATE * (1 - step / {STEPS}))


"""
    + MAIN,
)
LOAD_ROWS = """\
    state = torch.load(path, weights_only=True)
    rows = state.pop("rows", None)
    model.load_state_dict(state)
"""
IN_LOADING = (
    LOADED,
    LOAD_ROWS + "    if rows is not None: train_on(model, rows)\n    return model\n",
)
IN_FORWARD = (
    (LOADED, LOAD_ROWS + "    model.rows = rows\n    return model\n"),
    (
        HEAD,
        """\
        rows, self.rows = getattr(self, "rows", None), None
        if rows is not None: train_on(self, rows)
"""
        + HEAD,
    ),
)

ATTACKS = [
    Attack(
        name="trains in load_model",
        room=ROOM,
        what="keeps training rows in its checkpoint and trains on them while it loads",
        edits=(BRING_ROWS, ABLE_TO_TRAIN, IN_LOADING),
        status="eval_timeout",
        reason="CPU-seconds while loading its checkpoint, the limit is",
        by="what loading may cost",
        limited=True,
        forked=True,
    ),
    Attack(
        name="trains in its first forward pass",
        room=ROOM,
        what="keeps training rows in its checkpoint and trains on them when it is first asked",
        edits=(BRING_ROWS, ABLE_TO_TRAIN, *IN_FORWARD),
        status="eval_timeout",
        reason="CPU-seconds",
        by="what forward passes may cost",
        limited=True,
        forked=False,
    ),
    Attack(
        name="trains while scored, by the clock",
        room=ROOM,
        what="the same where the budget is one of seconds",
        edits=(BRING_ROWS, ABLE_TO_TRAIN, *IN_FORWARD),
        status="eval_timeout",
        reason="CPU-seconds",
        by="what forward passes may cost",
        budget=Budget(kind="seconds", amount=1.0, slack_seconds=60.0),
        limited=True,
        forked=True,
    ),
    Attack(
        name="calls itself dear",
        room=ROOM,
        what="says that it trained on few tokens, as a large model would, and trains in its first forward pass",
        edits=(
            (
                FINISH,
                BRING_ROWS[1].replace(
                    "    harness.finish", "    budget.tokens //= 100\n    harness.finish"
                ),
            ),
            ABLE_TO_TRAIN,
            *IN_FORWARD,
        ),
        status="eval_timeout",
        reason="CPU-seconds",
        by="what the whole run may cost",
        limited=True,
        forked=True,
    ),
    Attack(
        name="trains in a child while it loads",
        room=ROOM,
        what="a child process of the scoring box trains and hands the weights back",
        edits=(
            BRING_ROWS,
            ABLE_TO_TRAIN,
            (
                LOADED,
                LOAD_ROWS
                + """\
    import io, os
    if rows is not None:
        reading, writing = os.pipe()
        if os.fork() == 0:
            train_on(model, rows)
            blob = io.BytesIO()
            torch.save(model.state_dict(), blob)
            with os.fdopen(writing, "wb") as pipe: pipe.write(blob.getvalue())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe: learned = pipe.read()
        os.wait()
        model.load_state_dict(torch.load(io.BytesIO(learned), weights_only=True))
    return model
""",
            ),
        ),
        status="eval_timeout",
        reason="CPU-seconds",
        by="what loading may cost",
        limited=True,
        forked=True,
    ),
    Attack(
        name="gives the audit box more",
        room=ROOM,
        what="trains in the audit box alone: its answers are better than its claims",
        edits=(
            BRING_ROWS,
            ABLE_TO_TRAIN,
            (
                LOADED,
                LOAD_ROWS
                + "    import os\n"
                + "    if rows is not None and os.environ['NIGHTLY_ROLE'] == 'audit': train_on(model, rows)\n"
                + "    return model\n",
            ),
        ),
        status="audit_timeout",
        reason="CPU-seconds while loading its checkpoint for the audit",
        by="what loading may cost",
        limited=True,
        forked=True,
    ),
]
