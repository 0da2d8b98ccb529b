"""The measurement of decoding, and its images."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks import images as bench_images
from benchmarks import prepare as bench
from benchmarks.measure import read_measures
from conftest import CLASSES, write_images, write_tar
from optstate.data import prepare
from optstate.job import InputError


def read_files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


class TestGeneratedImages:
    def test_the_same_number_gives_the_same_bytes(self, tmp_path):
        for name in "ab":
            bench_images.generate(20, tmp_path / name)
        generated = read_files(tmp_path / "a")
        assert generated == read_files(tmp_path / "b")
        assert len(set(generated.values())) == len(generated) == 30

    def test_generated_images_form_a_data_set(self, tmp_path):
        bench_images.generate(50, tmp_path)
        classes, (train, valid) = prepare.list_images(tmp_path)
        assert len(classes) == 10
        assert (len(train.images), len(valid.images)) == (50, 10)
        for content in read_files(tmp_path).values():
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (160, 160), "RGB")
                image.load()

    def test_file_sizes_are_those_of_photographs(self, tmp_path):
        """Images of Imagenette at 160 px have 5,600 ± 1,400 bytes (mean and standard deviation)."""
        bench_images.generate(100, tmp_path)
        sizes = [len(content) for content in read_files(tmp_path).values()]
        assert np.mean(sizes) == pytest.approx(5600, rel=0.1)
        assert 700 < np.std(sizes) < 2000


def test_an_archive_gives_the_first_images_of_each_class(tmp_path):
    archive = write_tar(write_images(tmp_path / "images", per_class=15), tmp_path / "a.tgz")
    arguments = ["--archive", str(archive), "--number", "30", "--output", str(tmp_path / "taken")]
    bench_images.main(bench_images.PARSER.parse_args(arguments))
    assert read_files(tmp_path / "taken").keys() == {
        f"{split}/{name}/{index}.png"
        for name in CLASSES
        for split, indices in (("train", (0, 1, 10, 11, 12, 13, 14, 2, 3, 4)), ("val", (0, 1)))
        for index in indices
    }
    assert {p.name for p in (tmp_path / "taken").iterdir()} == {"train", "val"}


def test_a_tiny_folder_gives_all_measures(images, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "COMMANDS", 1)
    output = tmp_path / "bench/prepare.csv"
    arguments = ["--images", images, "--image-size", 16, "--cores", 2, "--output", output]
    bench.main(bench.PARSER.parse_args(list(map(str, arguments))))
    measured = {row.measure: row for row in read_measures(output)}
    assert measured["prepare_pixel_difference"].value == 0
    assert measured["prepare_pixel_difference"].is_met
    assert measured["prepare_vs_pillow"].goal == ">= 1.8"
    assert 5 < measured["prepare_peak_memory_mb"].value < 500
    assert measured["prepare_memory_growth"].value > 0
    assert np.isfinite(measured["prepare_start_seconds"].value)
    assert list(output.parent.iterdir()) == [output]


def test_rates_are_computed_from_planted_times():
    seconds = {
        "pillow": [4.0, 6.0], "pillows": [2.0, 4.0], "all": [2.0, 3.0], "one": [8.0, 12.0],
    }  # fmt: skip
    rows = {row.measure: row for row in bench.rate_measures(seconds, num_images=60, cores=4)}
    assert (rows["prepare_vs_pillow"].value, rows["prepare_vs_pillow"].goal) == (2.0, ">= 3.6")
    assert rows["prepare_vs_pillow_1core"].value == 0.5
    assert rows["pillow_processes_gain"].value == pytest.approx(10 / 6)
    assert rows["prepare_images_per_second"].value == 25.0
    assert rows["pillow_images_per_second"].value == 12.5


def test_memory_growth_uses_the_peaks_of_all_runs():
    rows = {row.measure: row for row in bench.memory_measures([[60.0, 50.0], [66.0, 55.0]])}
    assert rows["prepare_peak_memory_mb"].value == 63.0
    assert rows["prepare_memory_growth"].value == pytest.approx(1.2)
    assert not rows["prepare_memory_growth"].is_met


def test_the_pixel_difference_is_the_largest_one(tmp_path):
    (tmp_path / "arrays").mkdir()
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3)
    np.save(tmp_path / "arrays/train_images.npy", pixels[:3])
    np.save(tmp_path / "arrays/valid_images.npy", pixels[3:])
    np.save(tmp_path / "pillow0of1.npy", pixels)
    assert bench.pixel_difference(tmp_path) == 0
    pixels[3, 0, 1, 2] += 7
    np.save(tmp_path / "pillow0of1.npy", pixels)
    assert bench.pixel_difference(tmp_path) == 7


def test_a_command_that_fails_is_an_error(images, tmp_path):
    (images / "val/bee/2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="does not decode"):
        bench.time_command(images, 16, 2, tmp_path)


def test_a_quarter_has_every_fourth_image_of_a_class(images, tmp_path):
    quarter = read_files(bench.link_quarter(images, tmp_path / "quarter"))
    assert len(quarter) == 2 * len(CLASSES) * 2
    assert quarter.items() <= read_files(images).items()
