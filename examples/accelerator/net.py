"""The network and its data; yours go here."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
    )


if __name__ == "__main__":
    images = load_digits().images[:64, None] / 16
    np.savez("data.npz", x=images.astype(np.float32))
