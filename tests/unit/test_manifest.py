"""The files of a data set and their SHA-256."""

import os

import pytest

from optstate import checksums
from optstate.data.manifest import folder_sha256
from optstate.job import InputError


def test_the_manifest_of_an_existing_data_set_stays_the_same(images):
    for path in images.rglob("*.png"):
        path.write_bytes(path.relative_to(images).as_posix().encode())
    (images / "val/notes.txt").touch()
    expected = "ffc870d99143b06fdb93840104bbe84ae260ad772b8b0a7d79c59ede662803c9"
    assert folder_sha256(images) == expected
    (images / "val").rename(images / "valid")
    assert folder_sha256(images) != expected


def test_other_folders_are_ignored(images):
    before = folder_sha256(images)
    (images / "test/ant/nested").mkdir(parents=True)
    (images / "extra").symlink_to("absent")
    assert folder_sha256(images) == before


@pytest.mark.parametrize("names", [["val", "valid"], ["valid", "validation"]])
def test_several_validation_folders_are_refused(images, names):
    (images / "val").rename(images / names[0])
    (images / names[1]).mkdir()
    both = " and ".join(map(repr, names))
    message = f"^{images}: has several validation folders .{both}.. Keep one, and remove or rename"
    with pytest.raises(InputError, match=message):
        folder_sha256(images)


def test_a_missing_split_is_refused(images):
    (images / "val").rename(images / "test")
    message = f"^{images}: has no validation folder .*'validation'.. Add one, or .*fraction: 0.2`"
    with pytest.raises(InputError, match=message):
        folder_sha256(images)
    assert folder_sha256(images, has_valid_folder=False)
    (images / "train").rename(images / "training")
    with pytest.raises(InputError, match=f"^{images}: has no folder 'train'. The layout must be"):
        folder_sha256(images)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_validation_folder_that_would_not_be_used_is_refused(images, name):
    (images / "val").rename(images / name)
    message = f"^{images}/{name}: this validation folder would not be used, .* Set `valid_fraction`"
    with pytest.raises(InputError, match=message):
        folder_sha256(images, has_valid_folder=False)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_a_split_that_is_a_broken_link_is_refused(images, name):
    (images / "train").rename(images / "elsewhere")
    (images / name).symlink_to("/mnt/absent")
    with pytest.raises(InputError, match=f"^{images}/{name}: a link that leads nowhere. Mount"):
        folder_sha256(images)


def test_links_are_followed(images, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train").symlink_to(images / "train")
    (linked / "val").mkdir()
    for class_ in (images / "val").iterdir():
        (linked / "val" / class_.name).symlink_to(class_)
    assert folder_sha256(linked) == folder_sha256(images)


def test_hidden_files_are_ignored(images):
    before = folder_sha256(images)
    (images / "train/ant/.DS_Store").write_text("x")
    assert folder_sha256(images) == before


def test_a_renamed_file_changes_the_hash(images):
    before = folder_sha256(images)
    (images / "train/ant/0.png").rename(images / "train/ant/00.png")
    assert folder_sha256(images) != before


def test_cached_hashes_follow_the_content(images, tmp_path):
    cache = tmp_path / "cache.json"
    before = folder_sha256(images, cache)
    (images / "train/ant/0.png").touch()
    assert folder_sha256(images, cache) == before == folder_sha256(images)
    content = (images / "train/ant/0.png").read_bytes()
    (images / "train/ant/0.png").write_bytes(content[::-1])
    assert folder_sha256(images, cache) == folder_sha256(images) != before


def test_unchanged_files_are_not_read_again(images, tmp_path, monkeypatch):
    cache = tmp_path / "cache.json"
    before = folder_sha256(images, cache)
    monkeypatch.setattr("optstate.checksums._hash_file", lambda path: "read again")
    assert folder_sha256(images, cache) == before


def test_an_interrupted_reading_is_continued(images, tmp_path, monkeypatch):
    expected = folder_sha256(images)
    hash_file, cache, read = checksums._hash_file, tmp_path / "cache.json", []

    def fail_at_the_last(path):
        read.append(path)
        if path.endswith(last):
            raise OSError
        return hash_file(path)

    last = str(max(path for path in images.glob("val/*/*")).relative_to(images))
    monkeypatch.setattr(checksums, "_hash_file", fail_at_the_last)
    with pytest.raises(OSError):
        folder_sha256(images, cache)
    read.clear()
    monkeypatch.setattr(checksums, "_hash_file", lambda path: read.append(path) or hash_file(path))
    assert folder_sha256(images, cache) == expected
    assert [path.endswith(last) for path in read] == [True]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="absent: no such folder. Correct the path of `folder`"):
        folder_sha256(tmp_path / "absent")


@pytest.mark.parametrize("name", ["train/ant/fifo.png", "val/fifo"])
def test_special_files_change_the_hash_and_are_not_opened(images, name):
    before = folder_sha256(images)
    os.mkfifo(images / name)  # opening it would block
    assert folder_sha256(images) != before


@pytest.mark.parametrize("target", ["absent.png", "1.png", "0.png/0.png"])
@pytest.mark.parametrize("name", ["train/ant/1.png", "val/dog"])
def test_links_that_lead_nowhere_are_refused(images, name, target):
    (images / name).unlink(missing_ok=True)
    (images / name).symlink_to("dog" if (name, target) == ("val/dog", "1.png") else target)
    with pytest.raises(InputError, match=f"^{images}/{name}: a link that leads nowhere. Mount"):
        folder_sha256(images)


def test_the_first_of_all_broken_links_is_named(images):
    for name in ("val/ant/4.png", "val/bee/2.png", "train/cat/5.png"):
        (images / name).unlink()
        (images / name).symlink_to("/mnt/absent")
    message = f"^{images}/train/cat/5.png: a link that leads nowhere .the first of 3.. Mount"
    with pytest.raises(InputError, match=message):
        folder_sha256(images)


@pytest.mark.parametrize("number", [1, 2])
def test_folders_inside_class_folders_are_refused(images, number):
    for index in range(number):
        (images / f"train/bee/more{index}").mkdir()
    first = " .the first of 2." if number == 2 else ""
    message = f"^{images}/train/bee/more0: a folder inside a class .* not be used{first}. Move"
    with pytest.raises(InputError, match=message):
        folder_sha256(images)


def test_fewer_than_two_classes_are_refused(images):
    for path in (images / "train").iterdir():
        path.rename(images / path.name)
    with pytest.raises(InputError, match=f"^{images}/train: has no class folder. The layout must"):
        folder_sha256(images)
    (images / "cat").rename(images / "train/cat")
    (images / "train/notes.txt").touch()
    message = f"^{images}/train: only one class, 'cat'. A classifier needs at least two. Add a fold"
    with pytest.raises(InputError, match=message):
        folder_sha256(images)


@pytest.mark.parametrize("split", ["train", "val"])
def test_different_classes_are_refused(images, split):
    (images / split / "dog").mkdir()
    with pytest.raises(InputError, match=f"class 'dog' is in {split} but not in "):
        folder_sha256(images)


def test_files_outside_class_folders_count_by_their_names(images):
    before = folder_sha256(images)
    (images / "val/notes.txt").write_text("x")
    with_file = folder_sha256(images)
    assert with_file != before
    (images / "val/notes.txt").write_text("y")
    assert folder_sha256(images) == with_file
