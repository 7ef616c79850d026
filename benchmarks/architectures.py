"""Vision networks by default settings: what is captured, whether it is exact, and its noise.

    python benchmarks/architectures.py [--nets mobilenetv3_small_050:64,…] [--no-build]
    python benchmarks/architectures.py --trained

Networks are timm's (``pip install timm torchvision``), with random weights; their batch norms have
seen CIFAR images (``MPQ_DATA``), other images calibrate, and others again are measured on. A name
takes the size of its input behind a colon. Printed: sites; what runs in float; whether the device
equals the oracle bit for bit, or their ratio in dB; noise of the integer oracle to float at w8a8
and w4a8 (nearest codes); the median over sites of the noise that a site makes alone at w8a8; and
the noise at the output of the float network when its input has noise of −40 dB. Networks of random
weights are chaotic: where a small change of the input comes out large, so does any rounding, and
only the sites' own noise tells how well they were quantized.

``--trained`` takes networks like MobileNet-V2, MobileNet-V3 and EfficientNet that are trained on
handwritten digits (``mobile_training.py``), and prints their top-1 and noise by setting;
``--trained-on cifar`` trains on CIFAR images instead, which takes minutes a network.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accuracy import MIXED, assignment_of
from mobile_net import FAMILIES
from mobile_training import DATA, trained_net
from shared_nets import SharedNet, data_folder, paired_standard_error, top1
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import Batch
from mpq_compile.errors import MpqError
from mpq_compile.passes.base import target_name
from mpq_compile.passes.kinds import Kind, classify
from mpq_compile.recipe import Recipe, RecipeOptions
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.session import Session

NETS = (
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "efficientnet_b0:48",
    "efficientnet_lite0:48",
    "mnasnet_small",
    "resnet50:48",
    "resnext26ts",
    "regnety_002",
    "densenet121:48",
    "ghostnet_050",
    "convnext_atto",
    "repvgg_a0",
    "vgg11_bn:32",
    "inception_v3:96",
    "deit_tiny_patch16_224:64",
    "swin_tiny_patch4_window7_224:112",
    "mixer_s32_224:64",
    "mobilevit_xxs",
    "poolformer_s12",
    "levit_128s:224",
    "res2net50_26w_4s:48",
    "convnextv2_atto",
)
_NORMED, _CALIBRATED, _MEASURED = 96, 128, 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network with data to calibrate with and to measure on."""

    name: str
    model: nn.Module
    calibration: Tensor
    images: Tensor


def cifar_images(count: int) -> Tensor:
    """Return CIFAR training images of mean 0 and deviation 1, float32 [B, 3, 32, 32]."""
    stored = np.load(data_folder() / "cifar10_calib_a.npz")["images"][:count]
    images = torch.from_numpy(stored).float().permute(0, 3, 1, 2)
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return (images - mean) / std


def load(name: str) -> Case:
    """Make one of timm's networks and let its norms see images."""
    import timm

    model_name, _, size = name.partition(":")
    side = int(size or 64)
    torch.manual_seed(0)
    try:
        model = timm.create_model(model_name, num_classes=20, img_size=side)
    except TypeError:  # a network of convolutions takes images of any size
        model = timm.create_model(model_name, num_classes=20)
    _live_in(model)
    images = F.interpolate(cifar_images(_NORMED + _CALIBRATED + _MEASURED), side, mode="bilinear")
    with torch.no_grad():
        model.train()(images[:_NORMED])
    return Case(
        name=name,
        model=model.eval(),
        calibration=images[_NORMED:-_MEASURED],
        images=images[-_MEASURED:],
    )


def _live_in(model: nn.Module) -> None:
    """Undo initialisations at zero, which would leave nothing to measure."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None  # the statistics are those of what is seen
            if module.affine and not bool(module.weight.any()):
                nn.init.constant_(module.weight, 0.3)
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.trunc_normal_(module.weight, std=0.02)


def ratio(found: Tensor, exact: Tensor) -> float:
    """Return the ratio of signal to noise, dB."""
    noise = (found - exact).square().sum().clamp_min(1e-30)
    return float(10 * torch.log10(exact.square().sum() / noise))


def float_operators(session: Session) -> str:
    """Return the operators that run in float, with how often they do."""
    network = session.network
    nodes = network.module.graph.nodes
    floats = [node for node in nodes if classify(network, node) is Kind.FLOAT]
    found = Counter(target_name(node).removeprefix("aten.") for node in floats)
    return ", ".join(f"{count}× {name}" for name, count in found.items()) or "none"


def site_noise(session: Session, images: Tensor) -> float:
    """Return the median over sites of the ratio that each has alone at w8a8, dB."""
    choices = {site.id: ["w8a8"] for site in session.network.sites}
    graph = QuantizedGraph(session.network, session.calibration_for(choices))
    values = graph.float_values(Batch(inputs=(images,)))
    alone = [
        ratio(graph.site_output(values, site, "w8a8"), values[session.network.node_of[site]])
        for site in choices
    ]
    return statistics.median(alone)


def line(case: Case, builds: bool) -> str:
    """Return the row of a network."""
    with torch.no_grad():
        exact = case.model(case.images)
        shaken = case.images + 0.01 * case.images.std() * torch.randn_like(case.images)
        chaos = ratio(case.model(shaken), exact)
    batches = list(case.calibration.split(64))
    cells = []
    for candidate in ("w8a8", "w4a8"):
        session = Session(
            case.model,
            case.images[:1],
            batches,
            target="bit_serial",
            candidates=[candidate],
            recipe=Recipe(rounding="nearest"),
        )
        assignment = {site.id: candidate for site in session.network.sites}
        with torch.no_grad():
            cells.append(
                f"{candidate} {ratio(session.reference(assignment)(case.images), exact):5.1f}"
            )
    agreement = "not built"
    if builds:
        net = mpq.assign(case.model, case.images[:1], batches, "w8a8", tuned=False)
        found, expected = net(case.images[:1]), net.reference(case.images[:1])
        equal = torch.equal(found, expected)
        agreement = "exact" if equal else f"{ratio(found, expected):.0f} dB"
    return (
        f"{case.name:30s} {len(session.network.sites):3d} sites  {agreement:9s}  "
        f"{'  '.join(cells)} dB  a site {site_noise(session, case.images):4.1f}  "
        f"input −40 → {chaos:5.1f}  float: {float_operators(session)}"
    )


def settings(net: SharedNet) -> Iterator[str]:
    """Measure a trained network; give each row when it is there."""
    recipes: list[tuple[str, RecipeOptions]] = [
        ("w8a8", {}),
        ("w8a8", {"observer": "minmax"}),
        ("w4a8", {}),
        ("w4a8", {"equalize": "auto"}),
        ("w4a8", {"equalize": "cross_layer"}),
        ("4 bits", {}),
        ("w4a4", {}),
    ]
    with torch.no_grad():
        exact = net.model(net.images)
    right = top1(exact, net.labels)
    yield f"{net.name}, float {100 * float(right.float().mean()):.2f}"
    for setting, options in recipes:
        session = Session(
            net.model,
            net.example,
            [net.calibration],
            target="bit_serial",
            candidates=MIXED if "bits" in setting else [setting],
            recipe=Recipe(**options),
        )
        with torch.no_grad():
            found = session.reference(assignment_of(session, setting))(net.images)
        hits = top1(found, net.labels)
        yield (
            f"{setting:8s} {' '.join(map(str, options.values())):12s} top-1 "
            f"{100 * float(hits.float().mean()):6.2f} "
            f"(± {paired_standard_error(hits, right):.2f} to float)  {ratio(found, exact):5.1f} dB"
        )


def main() -> None:
    """Print each row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--no-build", action="store_true", help="the oracle alone")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--trained-on", default="digits", choices=tuple(DATA))
    options = parser.parse_args()
    if options.trained:
        for family in FAMILIES:
            for row in settings(trained_net(family, options.trained_on)):
                print(row, flush=True)
        return
    for name in options.nets.split(","):
        try:
            print(line(load(name), not options.no_build), flush=True)
        except MpqError as error:
            print(f"{name:30s} {type(error).__name__}: {error.message}", flush=True)


if __name__ == "__main__":
    main()
