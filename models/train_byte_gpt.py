"""Train the byte-level GPT that ships with onnxopt, and export it.

    python -m onnxopt.models.train_byte_gpt --minutes 105 --checkpoint first.pt
    python -m onnxopt.models.train_byte_gpt --minutes 42 --start-from first.pt --out byte_gpt.onnx

Needs the `train` extra. Hidden matrices learn by Muon (Jordan et al. 2024), the rest by AdamW; the
learning rate falls linearly with the time that is left, so any number of minutes gives a finished model.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxopt.models import exporting
from onnxopt.models.stdlib_text import held_out_bytes, training_bytes, windows

VOCABULARY = 256
CONTEXT = 512


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions (Su et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return mixed


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        change: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x))))
        return x + change


class ByteGPT(nn.Module):
    """tokens int64 `[batch, sequence]` -> logits `[batch, sequence, 256]`, sequence up to `CONTEXT`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int = 384, heads: int = 6, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        half = width // heads // 2
        angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))
        return logits


def bits_per_byte(model: nn.Module, rows: Tensor) -> float:
    """Mean negative log2 likelihood of each next byte; rows int64 `[windows, length + 1]`."""
    with torch.no_grad():
        losses = [_loss(model, part).item() * len(part) for part in rows.split(16)]
    return sum(losses) / len(rows) / math.log(2)


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def _optimizers(model: ByteGPT) -> list[torch.optim.Optimizer]:
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in hidden}
    other = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(other, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(minutes: float, batch: int, checkpoint: Path, start_from: Path | None = None) -> ByteGPT:
    """Train for so many minutes, saving the weights to `checkpoint` now and then.

    Weights to start from are trained on with 0.35 of the learning rate, on library modules alone: what is held
    out are library modules, and tests read differently.
    """
    torch.manual_seed(0 if start_from is None else 1)
    text = torch.from_numpy(training_bytes(tests=start_from is None).copy())
    held_out = torch.from_numpy(windows(held_out_bytes(), CONTEXT, 64))
    model = ByteGPT()
    if start_from is not None:
        model.load_state_dict(torch.load(start_from))
    optimizers = _optimizers(model)
    rates = [(1.0 if start_from is None else 0.35) * o.param_groups[0]["lr"] for o in optimizers]
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        scale = min(1.0, (step + 1) / 50) * min(1.0, (1 - done) / 0.6)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
        at = torch.randint(len(text) - CONTEXT - 1, (batch, 1))
        rows = text[at + torch.arange(CONTEXT + 1)].long()
        loss = _loss(model, rows)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0:
            torch.save(model.state_dict(), checkpoint)
            bits = bits_per_byte(model, held_out)
            print(f"{done:4.0%} step {step} train {loss.item() / math.log(2):.3f} held out {bits:.3f}", flush=True)
    torch.save(model.state_dict(), checkpoint)
    return model


def export(model: ByteGPT, path: Path) -> None:
    """Write the model with dynamic batch and sequence, opset 18."""
    sequence = torch.export.Dim("sequence", min=1, max=CONTEXT)
    example = {"tokens": torch.zeros(2, 16, dtype=torch.long)}
    exporting.export(model, example, path, outputs=["logits"], dynamic={"tokens": {0: "batch", 1: sequence}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--start-from", type=Path, help="checkpoint of an earlier run")
    parser.add_argument("--checkpoint", type=Path, default=Path("byte_gpt.pt"))
    parser.add_argument("--out", type=Path, default=Path("byte_gpt.onnx"))
    options = parser.parse_args()
    model = train(options.minutes, options.batch, options.checkpoint, options.start_from)
    held_out = torch.from_numpy(windows(held_out_bytes(), CONTEXT, 10**6))
    print(f"held out: {bits_per_byte(model, held_out):.4f} bits per byte")
    export(model, options.out)


if __name__ == "__main__":
    main()
