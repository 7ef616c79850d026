"""3-D layers become 2-D ones over frames, with the same values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import assert_same, calls, prepared
from torch import Tensor, nn
from volume_nets import Clips, Segmenter

from mpq_compile.passes.kinds import Kind, kinds


def volume(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


CONVOLUTIONS = {
    "plain": nn.Conv3d(4, 6, 3),
    "padded": nn.Conv3d(4, 6, 3, padding=1, bias=False),
    "strided": nn.Conv3d(4, 6, (3, 2, 3), stride=(2, 2, 1), padding=(1, 0, 2)),
    "dilated": nn.Conv3d(4, 6, 3, dilation=(2, 1, 2), padding=(2, 1, 2)),
    "grouped": nn.Conv3d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv3d(4, 8, (5, 3, 3), groups=4, padding=(2, 1, 1)),
    "same": nn.Conv3d(4, 6, (4, 3, 2), padding="same"),
    "valid": nn.Conv3d(4, 6, (2, 1, 2), padding="valid"),
    "of_space": nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1)),
    "of_time": nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)),
    "of_some_frames": nn.Conv3d(4, 6, 1, stride=2),
    "circular": nn.Conv3d(4, 6, 3, padding=1, padding_mode="circular"),
    "repeated": nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate"),
    "transposed": nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed_apart": nn.ConvTranspose3d(4, 6, 2, stride=2),
    "transposed_groups": nn.ConvTranspose3d(4, 6, (2, 3, 3), stride=(2, 1, 2), groups=2),
    "transposed_dilated": nn.ConvTranspose3d(4, 6, 3, dilation=2, bias=False),
    "transposed_cropped": nn.ConvTranspose3d(4, 6, (1, 3, 3), stride=(3, 1, 1), padding=(1, 0, 0)),
}
POOLINGS = {
    "max": nn.MaxPool3d(2),
    "max_padded": nn.MaxPool3d(3, stride=2, padding=1),
    "max_of_space": nn.MaxPool3d((1, 2, 2)),
    "max_up": nn.MaxPool3d(3, stride=2, ceil_mode=True),
    "mean": nn.AvgPool3d((2, 3, 3), stride=(2, 1, 1)),
    "mean_padded": nn.AvgPool3d(3, stride=2, padding=1, count_include_pad=False),
    "mean_of_all": nn.AvgPool3d((6, 8, 9)),
    "adaptive": nn.AdaptiveAvgPool3d((3, 4, 3)),
    "adaptive_time": nn.AdaptiveAvgPool3d((1, None, None)),
    "adaptive_all": nn.AdaptiveAvgPool3d(1),
    "adaptive_max": nn.AdaptiveMaxPool3d((3, 4, 3)),
    "nearest": nn.Upsample(scale_factor=(2.0, 3.0, 2.0)),
    "nearest_size": nn.Upsample(size=(9, 8, 18)),
    "linear": nn.Upsample(scale_factor=2.0, mode="trilinear"),
    "linear_factor": nn.Upsample(scale_factor=(1.1, 1.05, 2.0), mode="trilinear"),
    "linear_corners": nn.Upsample(size=(11, 8, 12), mode="trilinear", align_corners=True),
    "norm": nn.BatchNorm3d(4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_keep_their_values(name: str) -> None:
    x = volume(2, 4, 6, 8, 9)
    layer = CONVOLUTIONS[name].eval()
    network = prepared(layer, x[:1])
    assert Kind.UNSUPPORTED not in kinds(network).values()
    assert_same(layer, network.module, [x])
    (site,) = network.sites
    assert site.id.endswith("conv2d#0" if "Transpose" not in str(layer) else "conv_transpose2d#0")
    parameters = dict(layer.named_parameters())
    assert torch.Size(site.weight_shape).numel() == parameters["weight"].numel()


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_and_resizing_keep_their_values(name: str) -> None:
    x = volume(2, 4, 6, 8, 9)
    layer = POOLINGS[name].eval()
    network = prepared(layer, x[:1])
    assert Kind.UNSUPPORTED not in kinds(network).values()
    assert_same(layer, network.module, [x])


@pytest.mark.parametrize("make,shape", [(Clips, (3, 8, 12, 12)), (Segmenter, (1, 8, 12, 12))])
def test_networks_keep_their_values(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    net, x = make().eval(), volume(3, *shape)
    network = prepared(net, x[:1])
    assert network.captured.dynamic_batch
    assert_same(net, network.module, [x])


def test_norms_activations_and_residuals_are_fused() -> None:
    network = prepared(Clips().eval(), volume(1, 3, 8, 12, 12))
    found = calls(network.module)
    assert not {"batch_norm", "relu", "add", "conv3d"} & set(found)
    assert found["site_conv2d"] == len([s for s in network.sites if s.op == "conv2d"])
    names = [site.id.partition(":")[0] for site in network.sites]
    assert names[:2] == ["stem.0", "block.spatial"]


def test_one_frame_stands_for_all_of_time() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv3d(4, 6, 3), nn.Conv3d(6, 6, 1)
            self.scale = nn.Parameter(torch.rand(6, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * self.scale
            return y * torch.sigmoid(self.gate(y.mean((2, 3, 4), keepdim=True)))

    net, x = Gated().eval(), volume(2, 4, 6, 8, 9)
    assert_same(net, prepared(net, x[:1]).module, [x])


def test_what_varies_over_time_is_added_to_the_volume_itself() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.position = nn.Conv3d(4, 6, 1), nn.Parameter(torch.rand(1, 6, 6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) + self.position)[:, :, 1::2, 1:, :-1]

    net, x = Positions().eval(), volume(2, 4, 6, 8, 9)
    assert_same(net, prepared(net, x[:1]).module, [x])


def test_what_crops_or_differs_by_sample_is_left_to_the_volume_itself() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.share = nn.Conv3d(4, 6, 1), nn.Parameter(torch.rand(2, 1, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.conv(x) * self.share, (1, 0, -1, 0, -1, 2))

    net, x = Odd().eval(), volume(2, 4, 6, 8, 9)
    assert_same(net, prepared(net, x).module, [x])
