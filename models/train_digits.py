"""Train the two digit classifiers that ship with onnxopt, export them, and write their data.

    python -m onnxopt.models.train_digits --out FOLDER

Needs the `train` extra; takes under a minute on one core. The data are scikit-learn's 1,797 digits of 8 x 8 pixels: the
500 of `digits.eval.npz` are held out, the 256 of `digits.calib.npz` are among the others. With torch 2.13 on x86
the residual CNN gets 0.994 of the held-out digits right and the transformer 0.988. Seeds are fixed; the last
digit still depends on torch's version and the machine.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from onnxopt.models.exporting import export

CLASSES = 10
SIDE = 8
HELD_OUT = 500
CALIBRATION = 256


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalization around a skip (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class DigitsCNN(nn.Module):
    """images float32 `[batch, 1, 8, 8]` -> logits `[batch, 10]`: a stem and three residual blocks."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width, 1)
        )
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    """Pre-norm transformer block (Xiong et al. 2020), every row attending to every row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x))
        x = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return x

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1) @ v
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class DigitsTransformer(nn.Module):
    """images float32 `[batch, 1, 8, 8]` -> logits `[batch, 10]`: the rows are the tokens."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Linear(SIDE, width)
        self.position = nn.Parameter(0.02 * torch.randn(SIDE, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(images.squeeze(1)) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return logits


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW under a one-cycle rate, on images shifted at random by up to a pixel."""
    batch = 64
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            loss = F.cross_entropy(model(_shifted(images[rows])), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels both ways, zeros coming in."""
    padded = F.pad(images[:, 0], (1, 1, 1, 1))
    down, right = torch.randint(3, (2, len(images), 1, 1))
    side = torch.arange(SIDE)
    return padded[torch.arange(len(images)).view(-1, 1, 1), side.view(1, -1, 1) + down, side + right].unsqueeze(1)


def split() -> dict[str, tuple[Tensor, Tensor]]:
    """Images float32 `[n, 1, 8, 8]` in 0..1 and labels int64 `[n]` of `train`, `calib` (a part of it) and `eval`."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    parts = {"eval": order[:HELD_OUT], "train": order[HELD_OUT:], "calib": order[HELD_OUT:][:CALIBRATION]}
    return {name: (images[rows], labels[rows]) for name, rows in parts.items()}


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is at the label."""
    with torch.no_grad():
        right: Tensor = model.eval()(images).argmax(1) == labels
    return right.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path())
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    data = split()
    for part in ("calib", "eval"):
        images, labels = data[part]
        arrays: dict[str, Any] = {"images": images.numpy(), "label/y": labels.numpy()}
        np.savez_compressed(folder / f"digits.{part}.npz", **arrays)
    for kind, epochs in ((DigitsCNN, 20), (DigitsTransformer, 60)):
        torch.manual_seed(0)
        model: nn.Module = kind()
        train(model, *data["train"], epochs)
        name = "digits_cnn" if kind is DigitsCNN else "digits_transformer"
        print(f"{name}: {accuracy(model, *data['eval']):.3f} of {HELD_OUT} held-out digits right")
        example = {"images": data["eval"][0][:4]}
        export(model, example, folder / f"{name}.onnx", outputs=["logits"], dynamic={"images": {0: "batch"}})


if __name__ == "__main__":
    main()
