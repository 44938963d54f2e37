"""Room "under-reporting": candidates that spend more FLOPs than their budget has, by a word that is
too low or by tokens that they do not report.

The honest candidate's step takes COUNTED FLOPs a token.
"""

from __future__ import annotations

from dataclasses import replace

from tests.attacks.arena import CAPS, Attack, Room

ROOM: Room = "under-reporting"
COUNTED = 98304  # 6 for each of 14336 weights of matrices, 12 for each of 32 channels and 32 keys
WORD = "flops_per_token=flops_per_token"
TOKENS = "tokens + DEVICE_BATCH_SIZE * MAX_SEQ_LEN\n"
START = "    step, tokens = 0, 0\n"
BEGIN = "    torch.manual_seed(harness.seed())\n"
STEP = """\
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
"""
FINISH = "    harness.finish(model.state_dict(), steps=step)\n"
MORE = """\
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step(LEARNING_RATE)
"""
BUSY = replace(CAPS, cpu_seconds=1.5)
MILLIONTH = (WORD, "flops_per_token=flops_per_token / 1e6")


def says(factor: str) -> tuple[tuple[str, str], ...]:
    return ((WORD, f"flops_per_token={COUNTED} / {factor}"),)


def under_reporting(factor: str, what: str) -> Attack:
    return Attack(
        name=f"{factor} times its FLOPs",
        room=ROOM,
        what=what,
        edits=says(factor),
        status="dishonest_flops",
        reason=r"said .* FLOPs a token, the counted step takes 9\.83e\+04",
        smoke=True,
        forked=factor != "3",
    )


ATTACKS = [
    under_reporting("3", "says that a token takes a third of the FLOPs that it does"),
    under_reporting("1.2", "says a sixth less"),
    under_reporting("1.05", "says 5% less, a little beyond what may be rounded"),
    Attack(
        name="half of its tokens",
        room=ROOM,
        what="says the truth about a token and reports every second one",
        edits=((TOKENS, TOKENS.replace("DEVICE_BATCH_SIZE", "DEVICE_BATCH_SIZE // 2")),),
        status="dishonest_flops",
        reason="the counted step takes",
        smoke=True,
        forked=True,
    ),
    Attack(
        name="another word after the smoke step",
        room=ROOM,
        what="says the truth in the smoke step, and a third of it where it trains",
        edits=(
            (
                WORD,
                "flops_per_token=flops_per_token"
                " / (1 if __import__('os').environ['NIGHTLY_ROLE'] == 'smoke' else 3)",
            ),
        ),
        status="dishonest_flops",
        reason="said 3.277e.04 FLOPs a token, and 9.83e.04 in its smoke step",
        by="the words of both boxes",
        smoke=True,
        forked=True,
    ),
    Attack(
        name="more work after the smoke step",
        room=ROOM,
        what="takes three passes for each that it reports, but for the smoke step and its first step",
        edits=(
            (
                STEP,
                STEP
                + """\
        import os
        for _ in range(2 if step and os.environ['NIGHTLY_ROLE'] == 'train' else 0):
            optimizer.step(LEARNING_RATE)
            model(batch[:, :-1], batch[:, 1:]).backward()
""",
            ),
        ),
        status="dishonest_flops",
        reason="the counted step takes",
        by="the count of random steps in training",
        smoke=True,
        forked=True,
    ),
    Attack(
        name="never mind done",
        room=ROOM,
        what="trains twice as long as its budget lasts, and reports it",
        edits=(
            ("budget.progress(tokens)) < 1.0:", "budget.progress(tokens) / 2) < 0.5 or step < 80:"),
        ),
        status="dishonest_flops",
        reason="trained on .* tokens, its budget is for",
        by="the tokens that it reports",
        forked=True,
    ),
    Attack(
        name="one more epoch",
        room=ROOM,
        what="trains on when its budget is spent, before it hands over",
        edits=(
            (
                FINISH,
                "    for _ in range(40):\n"
                + "".join(f"    {line}\n" for line in MORE.splitlines())
                + FINISH,
            ),
        ),
        status="dishonest_flops",
        reason="reported no tokens for them",
        smoke=True,
        forked=True,
    ),
    Attack(
        name="no more reports",
        room=ROOM,
        what="reports the tokens of two steps only",
        edits=(
            (
                "    while (done := budget.progress(tokens)) < 1.0:\n",
                "    for step in range(60):\n"
                "        done = budget.progress(tokens) if step < 3 else 0.5\n",
            ),
        ),
        status="dishonest_flops",
        reason="reported no tokens for them",
        smoke=True,
        forked=True,
    ),
    Attack(
        name="a counter of its own",
        room=ROOM,
        what="replaces what the harness counts with, and says a millionth",
        edits=(
            MILLIONTH,
            (
                START,
                START
                + """\
    budget.counted.report = lambda tokens, done: None
    budget.counted.found = lambda: dict(counted_flops=0.1, counted_tokens=1, counted_traffic=1, late_flops=0)
""",
            ),
        ),
        status="train_timeout",
        reason="CPU-seconds while training",
        by="the watchdog on CPU-seconds",
        caps=BUSY,
        forked=True,
    ),
    Attack(
        name="work in a thread",
        room=ROOM,
        what="computes in a thread of its own, where nothing is counted, and says a millionth",
        edits=(
            MILLIONTH,
            (
                STEP,
                """\
        import threading
        thread = threading.Thread(target=lambda: model(batch[:, :-1], batch[:, 1:]).backward())
        thread.start()
        thread.join()
        loss = torch.ones(())
""",
            ),
        ),
        status="train_timeout",
        reason="CPU-seconds while training",
        by="the watchdog on CPU-seconds",
        caps=BUSY,
        forked=True,
    ),
    Attack(
        name="gradients by hand",
        room=ROOM,
        what="trains its head without autograd, by a backward pass of its own, and says a millionth",
        edits=(
            MILLIONTH,
            (
                STEP,
                """\
        with torch.no_grad():
            x = model.wte(batch[:, :-1])
            x = F.rms_norm(x + model.proj(model.attend(F.rms_norm(x, (DIM,)))), (DIM,))
            wrong = model.lm_head(x).softmax(-1) - F.one_hot(batch[:, 1:], VOCAB_SIZE)
            for p in model.parameters(): p.grad = torch.zeros_like(p)
            model.lm_head.weight.grad = wrong.flatten(0, 1).T @ x.flatten(0, 1) / x[..., 0].numel()
            loss = wrong.square().mean()
""",
            ),
        ),
        status="train_timeout",
        reason="CPU-seconds while training",
        by="the watchdog on CPU-seconds",
        caps=BUSY,
        forked=True,
    ),
]
