"""Small networks with recurrent layers and cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """[B, 6, 12] → class scores of the last step, scores of every step, and a last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(20, 9, batch_first=True)
        self.plain = nn.RNN(9, 8, batch_first=True, bidirectional=True)
        self.last, self.every = nn.Linear(9, 5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, _ = self.gru(self.lstm(x)[0])
        z, state = self.plain(y)
        return self.last(y[:, -1]), self.every(z), state.transpose(0, 1)


class Cells(nn.Module):
    """[B, 4, 12] → [B, 5] by cells, called once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(12, 16), nn.GRUCell(16, 7, bias=False)
        self.third, self.last = nn.RNNCell(7, 6, nonlinearity="relu"), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        h, c = x.new_zeros(batch, 16), x.new_zeros(batch, 16)
        g, r = x.new_zeros(batch, 7), x.new_zeros(batch, 6)
        for step in range(x.shape[1]):
            h, c = self.first(x[:, step], (h, c))
            g = self.second(h, g)
            r = self.third(g, r)
        return self.last(r)


class Carried(nn.Module):
    """States go in and come out: [B, 5, 6], [B, 2, 8], [B, 2, 10] → the same and [B, 5, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, 2, batch_first=True, proj_size=8)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
        return y, h.transpose(0, 1), c.transpose(0, 1)


class TimeFirst(nn.Module):
    """A convolution reads an image by columns, as recognisers of text do: [1, 1, 8, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.gru, self.last = nn.GRU(48, 8, bidirectional=True, bias=False), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.relu(self.conv(x)).permute(3, 0, 1, 2).flatten(2)
        return self.last(self.gru(columns)[0]).log_softmax(-1)
