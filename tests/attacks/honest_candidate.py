"""The honest candidate, which every attack and control edits. Read as text and run in boxes only.

A causal transformer of one layer on 64 tokens: a few tenths of a second of training on one CPU
thread bring its loss below that of the unigram. Adam is written out, because importing torch.optim
takes longer than all of the training.
"""

import torch
import torch.nn.functional as F
from torch import nn

import trainer.harness as harness
from trainer import prepare

VOCAB_SIZE = 64
MAX_SEQ_LEN = 32
DEVICE_BATCH_SIZE = 16
DIM = 32
HEADS = 2
LEARNING_RATE = 1e-2
ADAM_BETAS = (0.9, 0.95)


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(VOCAB_SIZE, DIM)
        self.wpe = nn.Embedding(MAX_SEQ_LEN, DIM)
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.proj = nn.Linear(DIM, DIM, bias=False)
        self.up = nn.Linear(DIM, 4 * DIM, bias=False)
        self.down = nn.Linear(4 * DIM, DIM, bias=False)
        self.lm_head = nn.Linear(DIM, VOCAB_SIZE, bias=False)

    def logits(self, idx):
        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]
        x = x + self.proj(self.attend(F.rms_norm(x, (DIM,))))
        x = x + self.down(F.relu(self.up(F.rms_norm(x, (DIM,)))).square())
        return self.lm_head(F.rms_norm(x, (DIM,)))

    def attend(self, x):
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, DIM)

    def forward(self, idx, targets=None, reduction="mean"):
        logits = self.logits(idx)
        if targets is None:
            return logits
        loss = F.cross_entropy(
            logits.reshape(-1, VOCAB_SIZE), targets.reshape(-1), reduction=reduction
        )
        return loss


class Adam:
    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, lr):
        self.steps += 1
        first, second = ADAM_BETAS
        for p, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            m.lerp_(p.grad, 1 - first)
            v.lerp_(p.grad.square(), 1 - second)
            scale = lr / (1 - first**self.steps)
            p.sub_(scale * m / ((v / (1 - second**self.steps)).sqrt() + 1e-8))
            p.grad = None


def load_model(path, device):
    torch.set_num_threads(1)
    model = GPT()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def main():
    torch.set_num_threads(1)
    torch.manual_seed(harness.seed())
    model = GPT()
    optimizer = Adam(model.parameters())
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    flops_per_token = 6 * matrices + 12 * DIM * MAX_SEQ_LEN
    budget = harness.ready(flops_per_token=flops_per_token)
    rows = torch.from_numpy(prepare.train_rows(MAX_SEQ_LEN).astype("int64"))
    step, tokens = 0, 0
    while (done := budget.progress(tokens)) < 1.0:
        batch = rows[
            torch.arange(step * DEVICE_BATCH_SIZE, (step + 1) * DEVICE_BATCH_SIZE) % len(rows)
        ]
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step(LEARNING_RATE * (1 - done))
        step, tokens = step + 1, tokens + DEVICE_BATCH_SIZE * MAX_SEQ_LEN
        harness.log(step=step, tokens=tokens, loss=loss.item())
    harness.finish(model.state_dict(), steps=step)


if __name__ == "__main__":
    main()
