"""Views follow PyTorch's strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpq_compile.lower.views import View, dense

BASE = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32)


def seen(view: View | None) -> Tensor:
    assert view is not None
    return BASE.as_strided(view.shape, view.strides, view.offset)


def start() -> tuple[View, Tensor]:
    shape = (2, 3, 4, 5)
    return dense("x", shape), BASE.view(shape)


def test_permuted_sliced_and_reshaped() -> None:
    view, tensor = start()
    assert torch.equal(seen(view), tensor)
    assert torch.equal(seen(view.permuted((3, 1, 0, 2))), tensor.permute(3, 1, 0, 2))
    assert torch.equal(seen(view.sliced(2, 1, 2, 2)), tensor[:, :, 1:4:2])
    assert torch.equal(seen(view.reshaped((6, 2, 10))), tensor.reshape(6, 2, 10))
    mixed = view.permuted((0, 2, 1, 3)).sliced(1, 2, 1, 2)
    assert torch.equal(seen(mixed), tensor.permute(0, 2, 1, 3)[:, 2:])


@pytest.mark.parametrize("shape", [(3, 2, 20), (3, 1, 2, 2, 2, 5, 1), (3, 2, 10, 2)])
def test_permuted_axes_split_and_merge_where_torch_allows(shape: tuple[int, ...]) -> None:
    view, tensor = start()
    turned = tensor.permute(1, 0, 2, 3)
    assert torch.equal(seen(view.permuted((1, 0, 2, 3)).reshaped(shape)), turned.view(shape))


def test_dense_views_are_their_buffer() -> None:
    view, _ = start()
    assert view.is_dense and view.reshaped((6, 1, 20)).is_dense  # type: ignore[union-attr]
    turned = view.permuted((0, 2, 3, 1))
    assert not turned.is_dense and turned.permuted((0, 3, 1, 2)).is_dense
    assert not view.sliced(0, 0, 1, 1).is_dense
    assert not dense("x", (2, 1, 3)).permuted((2, 1, 0)).is_dense


def test_what_strides_cannot_say_is_refused() -> None:
    view, tensor = start()
    assert view.permuted((1, 0, 2, 3)).reshaped((6, 20)) is None
    assert view.sliced(3, 0, 1, 4).reshaped((2, 3, 16)) is None
    with pytest.raises(RuntimeError):
        tensor.permute(1, 0, 2, 3).view(6, 20)
