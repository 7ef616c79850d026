"""Folders of images: which files, which labels, which values, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import network, two_inputs, wanted
from PIL import Image

from mpq_compile.data import image_array
from mpq_compile.data.batches import read_data
from mpq_compile.data.image_array import ImageTransform
from mpq_compile.data.images import ImageFolder, read_images
from mpq_compile.errors import CalibrationError, MpqError


def save(path: Path, value: int = 100, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)
    return path


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, value in (("dog", 200), ("cat", 100), ("ant", 50)):
        for number in range(2):
            save(tmp_path / name / "deep" / f"{number}.png", value)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("no image")
    found = read_images(ImageFolder(path=tmp_path), wanted())
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    means = found.inputs["input"].mean((1, 2, 3))
    assert means * 255 == pytest.approx([50, 50, 100, 100, 200, 200], abs=1e-3)


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    for value in range(0, 250, 10):
        save(tmp_path / f"{value:03}" / "x.png", value)
    data = read_data(tmp_path, network())
    images = torch.cat([batch.inputs[0] for batch in data.batches])
    labels = torch.cat([batch.labels for batch in data.batches if batch.labels is not None])
    assert (images.mean((1, 2, 3)) * 25.5).round().long().tolist() == labels.tolist()
    assert labels.tolist() != sorted(labels.tolist()), "drawn, not in the order of classes"


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.PNG"), save(tmp_path / "b.jpg")
    (batch,) = read_data(str(tmp_path), network()).batches
    assert batch.labels is None
    assert batch.inputs[0].shape == (2, 3, 6, 6)


def test_the_seed_draws_the_samples(tmp_path: Path) -> None:
    for value in range(20):
        save(tmp_path / f"{value:02}.png", 10 * value)

    def drawn(seed: int) -> list[int]:
        data = read_data(tmp_path, network(), samples=5, seed=seed)
        images = torch.cat([batch.inputs[0] for batch in data.batches])
        return (images[:, 0, 0, 0] * 25.5).round().int().tolist()

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) == 5
    assert "5 of 20 samples, drawn with seed 1" in read_data(tmp_path, network(), 5, 1).what


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_what_the_channels_ask_for(mode: str, channels: int) -> None:
    wide = Image.fromarray(np.full((6, 6), 65535, np.uint16))
    image = wide if mode == "I;16" else Image.new("L", (6, 6), 255).convert(mode)
    assert image.mode == mode
    made = ImageTransform(channels=channels, height=6, width=6)(image)
    assert made.dtype == np.float32 and made.shape == (channels, 6, 6)
    assert np.allclose(made, 1, atol=0.01)


def test_channels_come_first_and_are_normalised() -> None:
    image = Image.fromarray(np.broadcast_to(np.uint8([0, 51, 255]), (2, 2, 3)).copy())
    plain = ImageTransform(channels=3, height=2, width=2)
    assert np.allclose(plain(image)[:, 0, 0], [0, 0.2, 1])
    normal = ImageTransform(channels=3, height=2, width=2, mean=(0.5, 0.2, 0.5), std=(0.5, 1, 0.25))
    assert np.allclose(normal(image)[:, 1, 1], [-1, 0, 2], atol=1e-6)
    assert "none is taken off" in plain.how and "mean 0.5, 0.2, 0.5" in normal.how


@pytest.mark.parametrize("size", [(12, 6), (6, 12), (7, 6), (6, 6), (3, 5), (100, 9)])
@pytest.mark.parametrize("resize", [None, 8])
def test_any_size_fits(size: tuple[int, int], resize: int | None) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    made = ImageTransform(channels=3, height=6, width=6, resize=resize)(image)
    assert np.allclose(made * 255, np.array([10, 20, 30])[:, None, None])


def test_the_centre_is_kept() -> None:
    columns = np.tile(np.uint8([1, 2, 3, 4, 5, 6]), (2, 1))
    made = ImageTransform(channels=1, height=2, width=2)(Image.fromarray(columns))
    assert np.rint(made * 255).tolist() == [[[3, 4], [3, 4]]]


def test_resize_shows_less_of_the_border() -> None:
    ring = np.full((8, 8), 255, np.uint8)
    ring[2:6, 2:6] = 0
    whole = ImageTransform(channels=1, height=4, width=4)(Image.fromarray(ring))
    middle = ImageTransform(channels=1, height=4, width=4, resize=8)(Image.fromarray(ring))
    assert whole.max() > 0.5 and middle.max() == 0


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(CalibrationError, match="an image cannot be read") as caught:
        read_data(tmp_path, network())
    assert caught.value.where == str(tmp_path / "b.png")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(CalibrationError, match="truncated"):
        read_data(tmp_path, network())


def test_refused_folders(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such folder"):
        ImageFolder(path=tmp_path / "none").entries()
    with pytest.raises(CalibrationError, match="holds no images") as caught:
        read_data(tmp_path, network())
    assert caught.value.found == "nothing"
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(CalibrationError, match=r"\.csv"):
        read_data(tmp_path, network())
    save(tmp_path / "a.png"), save(tmp_path / "cat" / "b.png")
    with pytest.raises(CalibrationError, match="have no class"):
        read_data(tmp_path, network())


@pytest.mark.parametrize(
    "options", [{"mean": (0.5, 0.5)}, {"std": (0.0,)}, {"std": ()}, {"mean": (float("nan"),)}]
)
def test_refused_numbers(tmp_path: Path, options: dict[str, tuple[float, ...]]) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(CalibrationError, match="does not fit the model"):
        read_data(ImageFolder(path=tmp_path, **options), network())


def test_a_model_of_no_images_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(CalibrationError, match="does not take images") as caught:
        read_data(tmp_path, two_inputs())
    assert caught.value.found == "float32 [1, 3, 6, 6], float32 [1, 5]"


def test_without_pillow_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MpqError, match=r"mpq_compile\[images\]"):
        image_array.pillow()
