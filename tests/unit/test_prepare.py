"""From an archive or a folder to arrays."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import CLASSES, ROOT, assert_one_line, run_module, write_images, write_tar
from optstate.data import prepare
from optstate.data.manifest import file_sha256, folder_sha256
from optstate.job import InputError

SIZE = 16


def run(output: Path, *arguments: object, workers: int = 1, **options):
    return run_module(
        "optstate.data.prepare", *arguments, "--image-size", SIZE, "--workers", workers,
        "--output", output, "--log", output.with_name("log"), **options,
    )  # fmt: skip


def prepare_folder(folder: Path, output: Path, workers: int = 1):
    return run(output, "--folder", folder, "--sha256", folder_sha256(folder), workers=workers)


def prepared(folder: Path, output: Path) -> dict:
    """What dataset.json says, with the arrays beside it under their names."""
    result = prepare_folder(folder, output)
    assert result.returncode == 0, result.stderr
    card = json.loads((output / "dataset.json").read_text())
    return card | {path.stem: np.load(path) for path in output.glob("*.npy")}


def test_pixels_are_pillows_and_labels_are_alike_in_both_splits(images, tmp_path):
    result = prepared(images, tmp_path / "out")
    for split, folder in (("train", "train"), ("valid", "val")):
        paths = sorted((images / folder).rglob("*.png"))
        expected = [
            np.asarray(Image.open(p).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR))
            for p in paths
        ]
        assert np.array_equal(result[f"{split}_images"], expected)
        assert [CLASSES[label] for label in result[f"{split}_labels"]] == [
            p.parent.name for p in paths
        ]
    assert [c["name"] for c in result["classes"]] == list(CLASSES)
    assert result["classes"][1] == {"label": 1, "name": "bee", "train": 6, "valid": 6}


def test_archives_folders_and_workers_give_the_same_bytes(images, tmp_path):
    tar = write_tar(images, tmp_path / "a.tgz")
    zipped = Path(shutil.make_archive(str(tmp_path / "z"), "zip", images))
    results = [
        prepare_folder(images, tmp_path / "1"),
        prepare_folder(images, tmp_path / "2", workers=2),
        run(tmp_path / "3", "--archive", tar),
        run(tmp_path / "4", "--archive", zipped),
    ]
    assert [r.returncode for r in results] == [0] * 4
    for name in sorted(p.name for p in (tmp_path / "1").iterdir()):
        contents = {(tmp_path / str(n) / name).read_bytes() for n in (1, 2, 3, 4)}
        assert len(contents) == 1, name
    assert len(list((tmp_path / "3").iterdir())) == 5  # nothing extracted is left


def test_workers_are_children_of_this_process(images, tmp_path):
    """Whatever way of starting processes is the default: it differs between Pythons."""
    code = """
import multiprocessing, pathlib, sys
from optstate.data import prepare
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    prepare.prepare(pathlib.Path(sys.argv[1]), 32, 2, pathlib.Path(sys.argv[2]))
"""
    (tmp_path / "out").mkdir()
    subprocess.run(
        [sys.executable, "-c", code, images, tmp_path / "out"], check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")},
    )  # fmt: skip
    assert (tmp_path / "out/dataset.json").exists()


def test_greyscale_and_duplicates_are_reported_not_dropped(images, tmp_path):
    grey = Image.open(images / "train/ant/0.png").convert("L")
    grey.save(images / "train/ant/0.png")
    picture = Image.open(images / "train/bee/1.png")
    picture.save(images / "val/cat/1.bmp")  # another file, the same picture
    picture.save(images / "val/cat/2.png", compress_level=1)
    shutil.copy(images / "val/ant/3.png", images / "val/bee/3.png")
    result = prepared(images, tmp_path / "out")
    assert result["greyscale"] == {"train": ["train/ant/0.png"], "valid": []}
    assert result["duplicates"] == {
        "train": [],
        "valid": [["val/ant/3.png", "val/bee/3.png"]],
        "across_splits": [["train/bee/1.png", "val/cat/1.bmp", "val/cat/2.png"]],
    }
    assert result["num_images"] == {"train": 18, "valid": 19}
    assert len(result["valid_images"]) == 19


def test_pictures_that_only_look_alike_are_no_duplicates(images, tmp_path):
    """They differ in one value, which is lost when they are resized."""
    pixels = np.asarray(Image.open(images / "train/ant/0.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(images / "val/cat/alike.png")
    result = prepared(images, tmp_path / "out")
    assert np.array_equal(result["train_images"][0], result["valid_images"][-1])
    assert result["duplicates"] == {"train": [], "valid": [], "across_splits": []}


def test_more_images_than_a_worker_takes_at_once(tmp_path):
    images = write_images(tmp_path / "images", per_class=prepare.CHUNK + 3, size=SIZE)
    for workers in (1, 3):
        output = tmp_path / str(workers)
        assert prepare_folder(images, output, workers).returncode == 0
        expected = [np.asarray(Image.open(p)) for p in sorted((images / "train").rglob("*.png"))]
        assert np.array_equal(np.load(output / "train_images.npy"), expected)


def test_checksums_are_of_the_arrays(images, tmp_path):
    card = prepared(images, tmp_path / "out")
    for name, digest in card["sha256"].items():
        path = tmp_path / "out" / name
        assert file_sha256(path) == digest
    assert len(card["sha256"]) == 4


def test_other_files_are_left_out(images, tmp_path):
    (images / "train/ant/.DS_Store").write_text("x")
    (images / "train/ant/notes.txt").write_text("x")
    assert prepared(images, tmp_path / "out")["num_images"]["train"] == 18
    assert "notes.txt" in (tmp_path / "log").read_text()


def test_names_with_spaces_quotes_and_other_letters(tmp_path):
    classes = ("a b", "c'\"d", "línea\n2")
    images = write_images(tmp_path / "images", classes=classes)
    for name in ("two words.png", 'it\'s "quoted".png', "línea\n2.png", "-rf *.png", "\\.png"):
        shutil.copy(images / "train/a b/0.png", images / "train/a b" / name)
    card = prepared(images, tmp_path / "out")
    assert [c["name"] for c in card["classes"]] == sorted(classes)
    assert card["num_images"]["train"] == 23
    archive = write_tar(images, tmp_path / "a.tgz")
    assert run(tmp_path / "archived", "--archive", archive).returncode == 0
    cards = [(tmp_path / name / "dataset.json").read_bytes() for name in ("out", "archived")]
    assert cards[0] == cards[1]


class TestBadInput:
    """One line, which names the file and the mend; and no output."""

    @pytest.fixture(autouse=True)
    def no_output(self, tmp_path):
        yield
        output = tmp_path / "out"
        assert not output.exists() or list(output.iterdir()) == []

    def test_an_image_that_does_not_decode(self, images, tmp_path):
        (images / "val/bee/2.png").write_bytes(b"no image")
        assert_one_line(
            prepare_folder(images, tmp_path / "out"), "val/bee/2.png", "does not decode", "replace"
        )

    @pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.float32, "tiff")])
    def test_pixels_of_more_than_8_bits(self, images, tmp_path, dtype, suffix):
        image = Image.fromarray(np.linspace(0, 60_000, 64).reshape(8, 8).astype(dtype))
        image.save(images / f"train/ant/deep.{suffix}")
        assert_one_line(prepare_folder(images, tmp_path / "out"), f"deep.{suffix}", "8 bits")

    def test_a_name_that_is_not_utf8(self, images, tmp_path):
        Path(os.fsdecode(os.fsencode(images / "val/bee") + b"/\xff.png")).touch()
        assert_one_line(prepare_folder(images, tmp_path / "out"), "not UTF-8: rename it")

    def test_no_classes_at_all(self, tmp_path):
        for split in ("train", "val"):
            (tmp_path / "images" / split).mkdir(parents=True)
        result = prepare_folder(tmp_path / "images", tmp_path / "out")
        assert_one_line(result, "images/train: has no class folder")

    def test_an_encrypted_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
            zipped.writestr("train/a/x.png", b"x")
        content = bytearray((tmp_path / "a.zip").read_bytes())
        for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(header) + flags] |= 1  # the bit that says encrypted
        (tmp_path / "a.zip").write_bytes(content)
        result = run(tmp_path / "out", "--archive", tmp_path / "a.zip")
        assert_one_line(result, "a.zip", "encrypted", "replace")

    def test_an_image_in_an_archive_is_named_by_it(self, images, tmp_path):
        (images / "val/bee/2.png").write_bytes(b"no image")
        archive = write_tar(images, tmp_path / "a.tgz")
        result = run(tmp_path / "out", "--archive", archive)
        assert_one_line(result, "a.tgz/images/val/bee/2.png: does not decode")

    def test_a_truncated_image(self, images, tmp_path):
        path = images / "val/bee/2.png"
        path.write_bytes(path.read_bytes()[:300])
        assert_one_line(prepare_folder(images, tmp_path / "out"), "val/bee/2.png", "decode")

    def test_an_image_bomb(self, images, tmp_path):
        Image.new("1", (20_000, 20_000)).save(images / "train/ant/bomb.png")
        assert_one_line(prepare_folder(images, tmp_path / "out"), "bomb.png", "decompression bomb")

    def test_an_empty_class(self, images, tmp_path):
        shutil.rmtree(images / "train/cat")
        (images / "train/cat").mkdir()
        assert_one_line(prepare_folder(images, tmp_path / "out"), "train/cat", "no image", "add")

    @pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
    def test_a_class_missing_in_one_split(self, images, tmp_path, split, other):
        shutil.rmtree(images / split / "cat")
        words = (f"'cat' is in {other} but not in {split}",)
        assert_one_line(prepare_folder(images, tmp_path / "out"), *words)

    def test_a_split_missing(self, images, tmp_path):
        shutil.rmtree(images / "val")
        assert_one_line(prepare_folder(images, tmp_path / "out"), "'val'", "{train,val}/CLASS")

    def test_a_truncated_archive(self, images, tmp_path):
        archive = write_tar(images, tmp_path / "a.tgz")
        archive.write_bytes(archive.read_bytes()[:-2000])
        assert_one_line(run(tmp_path / "out", "--archive", archive), "a.tgz", "damaged", "replace")

    def test_no_archive(self, tmp_path):
        (tmp_path / "a.tgz").write_bytes(b"hello")
        assert_one_line(run(tmp_path / "out", "--archive", tmp_path / "a.tgz"), "neither a tar")

    @pytest.mark.parametrize("name", ["../outside.png", "train/../../outside.png"])
    def test_a_tar_member_outside(self, images, tmp_path, name):
        archive = write_tar(images, tmp_path / "a.tgz")
        with tarfile.open(archive, "w") as tar:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"bad"))
        assert_one_line(run(tmp_path / "out", "--archive", archive), "a.tgz", "outside.png")
        assert not list(tmp_path.rglob("outside.png"))

    def test_a_tar_link_outside(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            member = tarfile.TarInfo("train")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(member)
        assert_one_line(run(tmp_path / "out", "--archive", tmp_path / "a.tar"), "unsafe")

    def test_a_tar_device(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            member = tarfile.TarInfo("train/a/zero.png")
            member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 5
            tar.addfile(member)
        assert_one_line(run(tmp_path / "out", "--archive", tmp_path / "a.tar"), "unsafe")

    def test_an_absolute_tar_member_stays_inside(self, images, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(images, "images")
            member = tarfile.TarInfo(str(tmp_path / "outside.png"))
            member.size = 3
            tar.addfile(member, io.BytesIO(b"bad"))
        run(tmp_path / "out", "--archive", tmp_path / "a.tar")
        assert not (tmp_path / "outside.png").exists()
        shutil.rmtree(tmp_path / "out")

    def test_a_tar_bomb(self, tmp_path):
        """4 kB that say that they are 4 TB: refused at the header."""
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
            member = tarfile.TarInfo("train/a/x.png")
            member.size = 4 * 10**12
            tar.addfile(member)
        result = run(tmp_path / "out", "--archive", tmp_path / "a.tgz")
        assert_one_line(result, "a.tgz", "decompression bomb", "1.0 GB")

    def test_a_bomb_of_many_small_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prepare, "SMALL_BYTES", 1_000_000)
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
            for number in range(1000):
                tar.addfile(tarfile.TarInfo(f"train/a/{number}.png"))
        with pytest.raises(InputError, match="decompression bomb"):
            prepare.extract(tmp_path / "a.tgz", tmp_path / "extracted")
        assert list((tmp_path / "extracted").iterdir()) == []

    def test_a_bomb_in_a_header(self, tmp_path):
        with tarfile.open(tmp_path / "a.tgz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo("train/a/x.png")
            member.pax_headers = {"comment": "x" * 2_000_000}
            tar.addfile(member)
        result = run(tmp_path / "out", "--archive", tmp_path / "a.tgz")
        assert_one_line(result, "a.tgz", "decompression bomb")

    @pytest.mark.parametrize(
        ("key", "value"),
        [("mtime", "1e30"), ("mtime", "nan"), ("path", "a\0b"), ("GNU.sparse.size", "x")],
    )
    def test_a_tar_with_senseless_properties(self, tmp_path, key, value):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo("train/a/x.png")
            member.pax_headers = {key: value}
            tar.addfile(member)
        assert_one_line(run(tmp_path / "out", "--archive", tmp_path / "a.tar"), "a.tar", "damaged")

    def test_a_zip_with_a_name_of_no_encoding(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
            zipped.writestr("train/a/é.png", b"x")
        content = (tmp_path / "a.zip").read_bytes()
        (tmp_path / "a.zip").write_bytes(content.replace("é".encode(), b"\xff\xfe"))
        assert_one_line(run(tmp_path / "out", "--archive", tmp_path / "a.zip"), "a.zip", "damaged")

    def test_a_zip_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prepare, "SMALL_BYTES", 1_000_000)
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("train/a/x.png", bytes(10_000_000))
        with pytest.raises(InputError, match="decompression bomb"):
            prepare.extract(tmp_path / "a.zip", tmp_path / "extracted")

    def test_a_zip_member_outside(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
            zipped.writestr("../outside.png", b"bad")
        assert_one_line(run(tmp_path / "out", "--archive", tmp_path / "a.zip"), "outside.png")

    def test_a_file_size_limit(self, images, tmp_path):
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

        digest = folder_sha256(images)
        result = run(tmp_path / "out", "--folder", images, "--sha256", digest, preexec_fn=limit)
        assert_one_line(result, "ulimit -f")

    def test_too_little_space(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        (tmp_path / "out").mkdir()
        with pytest.raises(InputError, match="are needed and .* are free"):
            prepare.prepare(images, SIZE, 1, tmp_path / "out")
        archive = write_tar(images, tmp_path / "a.tgz")
        with pytest.raises(InputError, match="are needed and .* are free"):
            prepare.extract(archive, tmp_path / "extracted")

    def test_a_folder_that_changes(self, images, tmp_path):
        result = run(tmp_path / "out", "--folder", images, "--sha256", "0" * 64)
        assert_one_line(result, str(images), "changed", "run again")


class TestManifest:
    def test_it_is_what_sha256sum_prints(self, images, tmp_path):
        import hashlib
        import subprocess

        for name in ("two\nlines.png", "back\\slash.png", "re\rturn.png", "e ñ'\".png"):
            shutil.copy(images / "train/ant/0.png", images / "train/ant" / name)
        names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
        printed = subprocess.run(["sha256sum", *names], cwd=images, capture_output=True).stdout
        assert folder_sha256(images) == hashlib.sha256(printed).hexdigest()

    def test_files_behind_links_count(self, images, tmp_path):
        linked = tmp_path / "linked"
        linked.mkdir()
        (linked / "train").symlink_to(images / "train")
        (linked / "val").mkdir()
        for class_ in (images / "val").iterdir():
            (linked / "val" / class_.name).symlink_to(class_)
        assert folder_sha256(linked) == folder_sha256(images)

    def test_cached_hashes_follow_the_content(self, images, tmp_path):
        cache = tmp_path / "cache.json"
        before = folder_sha256(images, cache)
        (images / "train/ant/0.png").touch()
        assert folder_sha256(images, cache) == before == folder_sha256(images)
        content = (images / "train/ant/0.png").read_bytes()
        (images / "train/ant/0.png").write_bytes(content[::-1])
        assert folder_sha256(images, cache) == folder_sha256(images) != before

    def test_unchanged_files_are_not_read_again(self, images, tmp_path, monkeypatch):
        cache = tmp_path / "cache.json"
        before = folder_sha256(images, cache)
        monkeypatch.setattr("optstate.data.manifest._sha256", lambda path: "read again")
        assert folder_sha256(images, cache) == before
