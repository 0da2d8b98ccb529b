"""Decode images into arrays, in this process instead of workers."""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from conftest import CLASSES, write_images, write_tar
from optstate.checksums import file_sha256, read_checksums, verify, write_checksums
from optstate.data import prepare
from optstate.data.manifest import folder_sha256
from optstate.job import InputError

SIZE = 16


class InlinePool:
    """Decodes in this process, since unit tests start no processes."""

    map = staticmethod(map)


@pytest.fixture(autouse=True)
def inline_pool(monkeypatch):
    monkeypatch.setattr(
        prepare, "start_workers", lambda workers: contextlib.nullcontext(InlinePool())
    )


def run(output: Path, *arguments: object) -> None:
    arguments = (*arguments, "--image-size", SIZE, "--output", output)
    prepare.main(prepare.PARSER.parse_args(list(map(str, arguments))))


def archive_images(images: Path, archive: Path) -> Path:
    """Write an archive of a folder, with its checksum as ``fetch`` writes it."""
    write_checksums(archive.with_name("archive.sha256"), [write_tar(images, archive)])
    return archive


def prepare_folder(folder: Path, output: Path, *options: object) -> dict:
    """Return dataset.json, with the arrays next to it under their names."""
    sha256 = folder_sha256(folder, has_valid_folder="--valid-fraction" not in options)
    run(output, "--folder", folder, "--sha256", sha256, *options)
    card = json.loads((output / "dataset.json").read_text())
    return card | {path.stem: np.load(path) for path in output.glob("*.npy")}


def test_a_folder_that_changes_while_it_is_decoded_is_refused(images, tmp_path, monkeypatch):
    write_arrays = prepare.write_arrays

    def change_then_write(*arguments):
        shutil.copy(images / "train/ant/0.png", images / "train/bee/6.png")
        return write_arrays(*arguments)

    monkeypatch.setattr(prepare, "write_arrays", change_then_write)
    with pytest.raises(InputError, match="its files have changed since Snakemake started"):
        prepare_folder(images, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_pixels_equal_pillows_and_labels_agree_between_splits(images, tmp_path):
    result = prepare_folder(images, tmp_path / "out")
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


def test_greyscale_and_duplicates_are_reported_but_kept(images, tmp_path):
    grey = Image.open(images / "train/ant/0.png").convert("L")
    grey.save(images / "train/ant/0.png")
    picture = Image.open(images / "train/bee/1.png")
    picture.save(images / "val/cat/1.bmp")  # a different file with the same picture
    picture.save(images / "val/cat/2.png", compress_level=1)
    shutil.copy(images / "val/ant/3.png", images / "val/bee/3.png")
    result = prepare_folder(images, tmp_path / "out")
    assert result["greyscale"] == {"train": ["train/ant/0.png"], "valid": []}
    assert result["duplicates"] == {
        "train": [],
        "valid": [["val/ant/3.png", "val/bee/3.png"]],
        "across_splits": [["train/bee/1.png", "val/cat/1.bmp", "val/cat/2.png"]],
    }
    assert result["num_images"] == {"train": 18, "valid": 19}
    assert len(result["valid_images"]) == 19


def save_stored(picture: Image.Image, path: Path, orientation: int, **options: object) -> None:
    """Save a picture as a camera does that was held differently: turned, with its orientation."""
    undo = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
            6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = picture.transpose(Image.Transpose[undo]) if undo else picture
    stored.save(path, exif=exif, **options)


@pytest.mark.parametrize("extension", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, extension, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / f"x.{extension}"
    save_stored(Image.fromarray(pixels), path, orientation, lossless=True)
    _, is_rotated, picture = prepare.open_rgb(str(path))
    assert np.array_equal(picture, pixels)
    assert is_rotated is (orientation > 1)


def test_rotated_images_are_listed_and_compared_upright(images, tmp_path, caplog):
    picture = Image.open(images / "train/ant/0.png").resize((20, 30))
    save_stored(picture, images / "train/ant/1.png", 6)
    save_stored(picture, images / "val/bee/2.png", 8)
    save_stored(picture, images / "val/bee/3.png", 1)
    with caplog.at_level("INFO"):
        result = prepare_folder(images, tmp_path / "out")
    assert result["rotated"] == {"train": ["train/ant/1.png"], "valid": ["val/bee/2.png"]}
    same = ["train/ant/1.png", "val/bee/2.png", "val/bee/3.png"]
    assert result["duplicates"]["across_splits"] == [same]
    assert np.array_equal(result["train_images"][1], result["valid_images"][9])
    message = "valid: 18 images, 0 of them greyscale, 1 rotated as their EXIF orientation says"
    assert message in caplog.messages


@pytest.mark.parametrize("block", [b"Exif\0\0no TIFF header", b"Exif\0\0II*\0\x08", b"Exif"])
def test_a_damaged_exif_block_is_ignored(tmp_path, block):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.webp", exif=block, lossless=True)
    with Image.open(tmp_path / "x.webp") as image, pytest.raises(Exception):  # noqa: B017
        image.getexif()
    _, is_rotated, picture = prepare.open_rgb(str(tmp_path / "x.webp"))
    assert np.array_equal(picture, pixels)
    assert not is_rotated


def test_similar_pictures_are_not_duplicates(images, tmp_path):
    """The pictures differ in one value and are equal after resizing."""
    pixels = np.asarray(Image.open(images / "train/ant/0.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(images / "val/cat/similar.png")
    result = prepare_folder(images, tmp_path / "out")
    assert np.array_equal(result["train_images"][0], result["valid_images"][-1])
    assert result["duplicates"] == {"train": [], "valid": [], "across_splits": []}


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_validation_folder_may_have_other_names(images, tmp_path, name):
    usual = prepare_folder(images, tmp_path / "usual")
    (images / "val").rename(images / name)
    (images / name / "ant/1.heic").touch()
    (images / "test/dog/nested").mkdir(parents=True)  # other folders are ignored
    run(tmp_path / "out", "--archive", archive_images(images, tmp_path / "a.tgz"))
    result = prepare_folder(images, tmp_path / "out")
    assert (usual["split"], result["split"]) == ({"folder": "val"}, {"folder": name})
    assert result["left_out"] == {"train": [], "valid": [f"{name}/ant/1.heic"]}
    for key, value in usual.items():
        if key not in ("source_sha256", "split", "left_out"):
            assert np.array_equal(result[key], value), key


class TestValidFraction:
    """A part of the training images is for validation, if these have no folder."""

    SIZES = (2, 5, 9)  # training images of each class

    @pytest.fixture
    def pictures(self, tmp_path) -> Path:
        images = write_images(tmp_path / "images", per_class=9)
        shutil.rmtree(images / "val")
        for name, size in zip(CLASSES, self.SIZES, strict=True):
            for path in sorted((images / "train" / name).iterdir())[size:]:
                path.unlink()
        (images / "train/ant/notes.txt").touch()
        return images

    def list_splits(self, images: Path, **options: object) -> tuple[prepare.Split, prepare.Split]:
        """Return both splits, which must be disjoint and have all images, ordered by name."""
        holdout = prepare.Holdout(**{"valid_seed": None} | options)
        classes, (train, valid) = prepare.list_images(images, holdout)
        everything = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
        assert sorted(train.images + valid.images) == everything
        for split in (train, valid):
            assert split.images == sorted(split.images)
            assert [f"train/{classes[n]}" for n in split.labels] == [
                Path(image).parent.as_posix() for image in split.images
            ]
        return train, valid

    @pytest.mark.parametrize(
        ("fraction", "numbers"),
        [(0.2, [1, 1, 2]), (0.5, [1, 2, 4]), (0.01, [1, 1, 1]), (0.7, [1, 4, 6])],
    )
    def test_the_last_images_of_each_class_are_for_validation(self, pictures, fraction, numbers):
        _, valid = self.list_splits(pictures, valid_fraction=fraction)
        assert valid.images == [
            f"train/{name}/{index}.png"
            for name, size, number in zip(CLASSES, self.SIZES, numbers, strict=True)
            for index in range(size - number, size)
        ]

    def test_a_seed_chooses_them_at_random(self, pictures):
        _, valid = self.list_splits(pictures, valid_fraction=0.4, valid_seed=7)
        assert valid.images == [
            f"train/{name}/{index}.png"
            for label, (name, size, number) in enumerate(
                zip(CLASSES, self.SIZES, (1, 2, 4), strict=True)
            )
            for index in sorted(np.random.default_rng([7, label]).permutation(size)[-number:])
        ]
        _, other = self.list_splits(pictures, valid_fraction=0.4, valid_seed=8)
        assert other.images != valid.images

    @pytest.mark.parametrize("seed", [None, 0])
    def test_dataset_json_records_the_choice(self, pictures, tmp_path, seed):
        options = ["--valid-fraction", 0.2, *([] if seed is None else ["--valid-seed", seed])]
        result = prepare_folder(pictures, tmp_path / "out", *options)
        assert result["split"] == {"valid_fraction": 0.2, "valid_seed": seed}
        assert result["num_images"] == {"train": 12, "valid": 4}
        assert result["left_out"] == {"train": ["train/ant/notes.txt"], "valid": []}
        assert result["duplicates"] == {"train": [], "valid": [], "across_splits": []}
        _, valid = self.list_splits(pictures, valid_fraction=0.2, valid_seed=seed)
        expected = [
            np.asarray(Image.open(pictures / image).resize((SIZE, SIZE), Image.BILINEAR))
            for image in valid.images
        ]
        assert np.array_equal(result["valid_images"], expected)
        assert result["valid_labels"].tolist() == [0, 1, 2, 2]

    def test_archives_and_folders_give_the_same_bytes(self, pictures, tmp_path):
        options, cards = ["--valid-fraction", 0.3, "--valid-seed", 1], []
        prepare_folder(pictures, tmp_path / "out", *options)
        archive = archive_images(pictures, tmp_path / "a.tgz")
        run(tmp_path / "archived", "--archive", archive, *options)
        for name in ("out", "archived"):
            card = json.loads((tmp_path / name / "dataset.json").read_text())
            cards.append({key: card[key] for key in card if key != "source_sha256"})
        assert cards[0] == cards[1]

    @pytest.mark.parametrize(("size", "fraction"), [(1, 0.2), (2, 0.8)])
    def test_every_class_keeps_a_training_image(self, pictures, tmp_path, size, fraction):
        if size == 1:
            (pictures / "train/ant/1.png").unlink()
        message = (
            f"^{pictures}/train/ant: no training image would remain, because `valid_fraction: "
            f"{fraction}` takes {size} of {size} for validation. Add images, or choose a smaller"
        )
        with pytest.raises(InputError, match=message):
            prepare_folder(pictures, tmp_path / "out", "--valid-fraction", fraction)

    def test_an_archive_must_fit_the_options(self, pictures, tmp_path):
        archive = archive_images(pictures, tmp_path / "a.tgz")
        message = f"^{archive}/images: has no validation folder .* `valid_fraction: 0.2` for this"
        with pytest.raises(InputError, match=message):
            run(tmp_path / "out", "--archive", archive)
        (pictures / "valid/ant").mkdir(parents=True)
        archive = archive_images(pictures, tmp_path / "a.tgz")
        message = f"^{archive}/images/valid: this validation folder would not be used, because `val"
        with pytest.raises(InputError, match=message):
            run(tmp_path / "out", "--archive", archive, "--valid-fraction", 0.2)


def test_checksums_are_those_of_the_arrays(images, tmp_path):
    card = prepare_folder(images, tmp_path / "out")
    for name, digest in card["sha256"].items():
        assert file_sha256(tmp_path / "out" / name) == digest
    assert len(card["sha256"]) == 4


def test_all_outputs_are_listed(images, tmp_path):
    prepare_folder(images, tmp_path / "out")
    outputs = sorted((tmp_path / "out").iterdir())
    listed = [path for path in outputs if path.name != "dataset.sha256"]
    assert len(listed) == 5
    assert list(read_checksums(tmp_path / "out")) == [path.name for path in listed]
    verify(*listed)


def test_the_checksums_appear_last(images, tmp_path, monkeypatch):
    appeared = []
    replace = Path.replace

    def record(source: Path, target: Path) -> Path:
        appeared.extend([target.name] if target.parent == tmp_path / "out" else [])
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", record)
    prepare_folder(images, tmp_path / "out")
    assert len(appeared) == 6
    assert appeared[-1] == "dataset.sha256"


def test_hidden_files_are_ignored(images, tmp_path):
    (images / "train/ant/.DS_Store").write_text("x")
    (images / "train/ant/.thumbnails").mkdir()
    assert prepare_folder(images, tmp_path / "out")["left_out"] == {"train": [], "valid": []}


def test_other_files_are_left_out_with_a_warning(images, tmp_path, caplog):
    for name in ("val/cat/1.heic", "train/ant/notes.txt", "train/2.png"):
        (images / name).write_text("x")
    os.mkfifo(images / "train/ant/fifo.png")
    (images / "train/bee/null.png").symlink_to("/dev/null")
    with caplog.at_level("INFO"):
        card = prepare_folder(images, tmp_path / "out")
    assert card["num_images"] == {"train": 18, "valid": 18}
    assert card["left_out"] == {
        "train": ["train/2.png", "train/ant/fifo.png", "train/ant/notes.txt", "train/bee/null.png"],
        "valid": ["val/cat/1.heic"],
    }
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("5 files left out, because only image ")
    assert "(the first: 'train/2.png')" in warning
    for names in card["left_out"].values():
        for name in names:
            assert f"{name}: left out, because it is not an image file in a class folder" in (
                caplog.messages
            )


def test_names_may_have_spaces_quotes_and_line_breaks(tmp_path):
    classes = ("a b", "c'\"d", "línea\n2")
    images = write_images(tmp_path / "images", classes=classes)
    for name in ("two words.png", 'it\'s "quoted".png', "línea\n2.png", "-rf *.png", "\\.png"):
        shutil.copy(images / "train/a b/0.png", images / "train/a b" / name)
    card = prepare_folder(images, tmp_path / "out")
    assert [c["name"] for c in card["classes"]] == sorted(classes)
    assert card["num_images"]["train"] == 23
    run(tmp_path / "archived", "--archive", archive_images(images, tmp_path / "a.tgz"))
    archived = json.loads((tmp_path / "archived/dataset.json").read_text())
    assert archived == {key: card[key] for key in archived}


class TestBadInput:
    """Each error names the file and the fix, and there is no output."""

    @pytest.fixture(autouse=True)
    def no_output(self, tmp_path):
        yield
        output = tmp_path / "out"
        assert not output.exists() or list(output.iterdir()) == []

    @staticmethod
    def assert_refused(images: Path, output: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            prepare_folder(images, output)

    def test_image_that_does_not_decode(self, images, tmp_path):
        (images / "val/bee/2.png").write_bytes(b"no image")
        message = "val/bee/2.png: does not decode as an image .*Replace or remove it"
        self.assert_refused(images, tmp_path / "out", message)

    def test_truncated_image(self, images, tmp_path):
        path = images / "val/bee/2.png"
        path.write_bytes(path.read_bytes()[:300])
        self.assert_refused(images, tmp_path / "out", "val/bee/2.png: does not decode")

    def test_image_of_an_archive(self, images, tmp_path):
        (images / "val/bee/2.png").write_bytes(b"no image")
        archive = archive_images(images, tmp_path / "a.tgz")
        with pytest.raises(InputError, match="a.tgz/images/val/bee/2.png: does not decode"):
            run(tmp_path / "out", "--archive", archive)

    def test_several_images_that_cannot_be_used(self, images, tmp_path, caplog):
        names = ("train/ant/1.png", "train/cat/0.png", "val/bee/2.png")
        for name in names:
            (images / name).write_bytes(b"no image")
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(images / "val/cat/deep.png")
        archive = archive_images(images, tmp_path / "a.tgz")
        message = r"a.tgz/images/train/ant/1.png: does not decode .* The log names 3 more\.$"
        with caplog.at_level("INFO"), pytest.raises(InputError, match=message):
            run(tmp_path / "out", "--archive", archive)
        logged = [r.getMessage() for r in caplog.records if ".png: " in r.getMessage()]
        assert [line.partition(": ")[0] for line in logged] == [*names, "val/cat/deep.png"]
        assert "extracting" not in "".join(logged)

    def test_changed_archive(self, images, tmp_path):
        archive = archive_images(images, tmp_path / "a.tgz")
        content = bytearray(archive.read_bytes())
        content[-1] ^= 1
        archive.write_bytes(content)
        with pytest.raises(InputError, match=f"{archive}: changed since it was made"):
            run(tmp_path / "out", "--archive", archive)
        assert not (tmp_path / "out").exists()

    def test_broken_links_and_nested_folders_in_an_archive(self, images, tmp_path):
        (images / "val/bee/more").mkdir()
        archive = archive_images(images, tmp_path / "a.tgz")
        with pytest.raises(InputError, match=f"^{archive}/images/val/bee/more: a folder inside"):
            run(tmp_path / "out", "--archive", archive)
        (images / "val/bee/x.png").symlink_to("absent.png")
        archive = archive_images(images, tmp_path / "a.tgz")
        with pytest.raises(InputError, match=f"^{archive}/images/val/bee/x.png: a link that leads"):
            run(tmp_path / "out", "--archive", archive)

    def test_image_bomb(self, images, tmp_path):
        path = images / "train/ant/bomb.png"
        Image.new("L", (1, 1)).save(path)
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 20_000, 20_000)  # width and height
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
        self.assert_refused(images, tmp_path / "out", "bomb.png.*decompression bomb")

    @pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.float32, "tiff")])
    def test_pixels_of_more_than_8_bits(self, images, tmp_path, dtype, suffix):
        image = Image.fromarray(np.linspace(0, 60_000, 64).reshape(8, 8).astype(dtype))
        image.save(images / f"train/ant/deep.{suffix}")
        message = f"deep.{suffix}: has more than 8 bits per channel.*Convert it to 8 bits"
        self.assert_refused(images, tmp_path / "out", message)

    def test_name_that_is_not_utf8(self, images, tmp_path):
        for name in (b"val/bee/\xff.png", b"val/\xff.txt"):
            path = Path(os.fsdecode(os.fsencode(images) + b"/" + name))
            path.touch()
            self.assert_refused(images, tmp_path / "out", "not UTF-8. Rename it")
            path.unlink()

    def test_archive_with_one_class(self, tmp_path):
        images = write_images(tmp_path / "images", classes=("cat",))
        archive = archive_images(images, tmp_path / "a.tgz")
        message = f"^{archive}/images/train: only one class, 'cat'. A classifier needs at least two"
        with pytest.raises(InputError, match=message):
            run(tmp_path / "out", "--archive", archive)

    def test_empty_class(self, images, tmp_path):
        shutil.rmtree(images / "train/cat")
        (images / "train/cat").mkdir()
        message = "train/cat: no image in this class folder. Add images"
        self.assert_refused(images, tmp_path / "out", message)
        (images / "train/cat/1.heic").touch()
        message = "train/cat: no image in this class folder, only files such as '1.heic'. Add"
        self.assert_refused(images, tmp_path / "out", message)

    @pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
    def test_class_missing_in_one_split(self, images, tmp_path, split, other):
        shutil.rmtree(images / split / "cat")
        message = f"'cat' is in {other} but not in {split}. Add it there"
        self.assert_refused(images, tmp_path / "out", message)

    def test_archive_without_a_split(self, images, tmp_path):
        (images / "train").rename(images / "Train")
        archive = archive_images(images, tmp_path / "a.tgz")
        message = f"^{archive}/images: has no folder 'train'. The layout must be train/CLASS/IMAGE"
        with pytest.raises(InputError, match=message):
            run(tmp_path / "out", "--archive", archive)

    def test_full_disk(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        self.assert_refused(images, tmp_path / "out", "are needed and .* are free")

    def test_folder_that_changes(self, images, tmp_path):
        with pytest.raises(InputError, match=f"{images}: its files have changed .* Run again"):
            run(tmp_path / "out", "--folder", images, "--sha256", "0" * 64)


def test_a_file_is_hashed_from_its_position_in_several_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "READ_BYTES", 5)
    (tmp_path / "a").write_bytes(bytes(range(20)))
    digest = hashlib.sha256()
    with (tmp_path / "a").open("rb", buffering=0) as file:
        prepare.update_digest(digest, file, 7)
        assert digest.digest() == hashlib.sha256(bytes(range(7))).digest()
        prepare.update_digest(digest, file, 13)
        assert digest.digest() == hashlib.sha256(bytes(range(20))).digest()
        with pytest.raises(EOFError, match="3 bytes are missing"):
            prepare.update_digest(digest, file, 3)
