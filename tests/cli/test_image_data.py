"""`--data` as a folder of images, and `mpq stability`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from verbs import Mpq

ANALYTIC = ("--target", "bit_serial", "--candidates", "w8a8,w4a8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos of three classes, larger than the model's input."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(12):
        path = folder / f"class{number % 3}" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def photo_job(place: Path, photos: Path) -> tuple[object, ...]:
    return (f"{place}/net.py:make_with_inputs", "--data", photos)


def test_plan_says_how_images_were_read(mpq: Mpq, photo_job: tuple[object, ...]) -> None:
    result = mpq("plan", *photo_job, *ANALYTIC, "--json")
    assert result.code == 0
    assert any("none is taken off" in note for note in result.json["notes"])
    assert "12 of 12 samples" in result.json["provenance"]["data"]


def test_options_of_images(mpq: Mpq, photo_job: tuple[object, ...]) -> None:
    options = ("--mean", "0.5,0.4,0.3", "--std", "0.2", "--resize", "9", "--samples", "6")
    result = mpq("plan", *photo_job, *ANALYTIC, *options, "--json")
    assert result.code == 0
    note = next(note for note in result.json["notes"] if note.startswith("images"))
    assert (
        note == "images: shorter side 9, centre 8 × 8, scaled to [0, 1], mean 0.5, 0.4, 0.3, "
        "deviation 0.2"
    )
    assert "6 of 12 samples" in result.json["provenance"]["data"]


def test_run_on_images(mpq: Mpq, artifact: Path, photos: Path) -> None:
    result = mpq("run", artifact, "--data", photos, "--json")
    assert result.code == 0
    assert result.json["samples"] == 12
    assert 0 <= result.json["top1_percent"] <= 100
    assert mpq("run", artifact, "--data", photos, "--samples", 5, "--json").json["samples"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "0.5,0.4"), "the mean of the images does not fit the model"),
        (("--std", "0"), "the std of the images does not fit the model"),
        (("--std", "half"), "not a list of numbers"),
    ],
)
def test_wrong_options(
    mpq: Mpq, photo_job: tuple[object, ...], options: tuple[str, ...], message: str
) -> None:
    result = mpq("plan", *photo_job, *ANALYTIC, *options, "--json")
    assert result.code == 2
    assert message in result.json["message"]


def test_a_model_without_size_is_refused(mpq: Mpq, place: Path, photos: Path) -> None:
    result = mpq("plan", f"{place}/net.py:make", "--data", photos, *ANALYTIC, "--json")
    assert result.code == 2
    assert "(model, example_inputs)" in result.json["remedy"]


def test_options_of_images_are_refused_for_arrays(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--mean", "0.5", "--json")
    assert (result.code, result.json["found"]) == (2, "--mean with a file")


def test_an_empty_folder_is_refused(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    result = mpq("plan", job[0], "--data", tmp_path, *ANALYTIC, "--json")
    assert result.code == 2
    assert "holds no images" in result.json["message"]


def test_stability(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("stability", *job, *ANALYTIC, "--avg-bits", "6", "--json")
    assert result.code == (1 if result.json["enough"] is None else 0)
    assert [part["samples"] for part in result.json["parts"]] == [2, 4, 8]
    again = mpq("stability", *job, *ANALYTIC, "--avg-bits", "6", "--json")
    assert again.json == result.json
    shown = mpq("stability", *job, *ANALYTIC, "--avg-bits", "6")
    assert "rank correlation" in shown.out and result.json["verdict"][:20] in shown.out
