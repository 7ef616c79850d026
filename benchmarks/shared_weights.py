"""Weights that are read several times: codes, and the loss that is predicted for them.

    python benchmarks/shared_weights.py [--nets lstm,gru,encoder] [--epochs 20]

Trains small networks on scikit-learn's digits, an image being a sequence of eight rows: an LSTM and
a GRU of 64, and an encoder that applies one transformer layer four times. Prints for uniform
assignments top-1 and SQNR against float on 597 held-out digits, with the nearest codes and with
``gptq``, and for each weight the loss that the network has with this weight alone at fewer bits,
over the predicted one. All by the oracle, which the device equals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpq_compile.demo import Digits, accuracy, load_digits, train
from mpq_compile.recipe import Recipe
from mpq_compile.sensitivity.base import leading
from mpq_compile.sensitivity.sqnr import decibels, noise_to_signal
from mpq_compile.session import Session

WIDTH, ROWS = 64, 8


class Rows(nn.Module):
    """Reads the rows of a digit: [B, 1, 8, 8] → [B, 10]."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.layer, self.head = layer(ROWS, WIDTH, batch_first=True), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, of the last hidden state."""
        return self.head(self.layer(x.flatten(1, 2))[0][:, -1])


class SharedEncoder(nn.Module):
    """One layer, four times: [B, 1, 8, 8] → [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(ROWS, WIDTH), nn.Linear(WIDTH, 10)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, of the mean over rows."""
        x = self.up(x.flatten(1, 2))
        for _ in range(4):
            x = self.layer(x)
        return self.head(x.mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Rows(nn.LSTM),
    "gru": lambda: Rows(nn.GRU),
    "encoder": SharedEncoder,
}


def session_of(model: nn.Module, digits: Digits, rounding: str, metric: str = "sqnr") -> Session:
    """Return a session on 256 of the training images."""
    images = digits.train[0][:256]
    recipe = Recipe(rounding=rounding)
    return Session(
        model, images[:1], images.split(32), target="bit_serial", recipe=recipe, metric=metric
    )


def show_codes(model: nn.Module, digits: Digits) -> None:
    """Print what rounding makes of uniform assignments."""
    images, labels = digits.held_out
    with torch.no_grad():
        exact = model(images)
    print(f"float: top-1 {accuracy(exact, labels):.2f}")
    for name in ("w8a8", "w4a8", "w3a8", "w2a8"):
        cells = []
        for rounding in ("nearest", "gptq"):
            session = session_of(model, digits, rounding)
            scores = session.reference({s.id: name for s in session.network.sites})(images)
            quality = decibels(noise_to_signal([scores], [exact]))
            cells.append(f"{rounding} {accuracy(scores, labels):.2f}, {quality:.1f} dB")
        print(f"{name}: {'; '.join(cells)}")


def show_losses(model: nn.Module, digits: Digits) -> None:
    """Print the loss of each weight at 4 and 2 bits over the predicted one, beside 8 bits."""
    session = session_of(model, digits, "nearest", "kl")
    images = digits.train[0][:256]
    with torch.no_grad():
        exact = model(images).log_softmax(1)
    groups: dict[str, list[str]] = {}
    for site in session.network.sites:
        groups.setdefault(site.group, []).append(site.id)
    for site in leading(session.network, session.choices):
        group = next(members for members in groups.values() if members[0] == site)
        ratios = []
        for name in ("w4a8", "w2a8"):
            names = {s.id: "fp32" for s in session.network.sites}
            names.update(dict.fromkeys(group, name))
            found = session.reference(names)(images).log_softmax(1)
            loss = float((exact.exp() * (exact - found)).sum(1).mean())
            predicted = sum(session.sensitivity.loss[member][name] for member in group)
            ratios.append(f"{name} {loss / predicted:.2f}")
        print(f"{site}, read {len(group)} times, true KL over predicted: {', '.join(ratios)}")


def main() -> None:
    """Print both for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    digits = load_digits()
    for name in options.nets.split(","):
        torch.manual_seed(0)
        model = train(NETS[name](), digits, options.epochs, name)
        print(f"\n{name}")
        show_codes(model, digits)
        show_losses(model, digits)


if __name__ == "__main__":
    main()
