"""SHA-256 of files and data sets."""

import pytest

from optstate.data.manifest import folder_sha256
from optstate.job import InputError


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
    monkeypatch.setattr("optstate.data.manifest._hash_file", lambda path: "read again")
    assert folder_sha256(images, cache) == before


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="absent: no such folder. Correct the path of `folder`"):
        folder_sha256(tmp_path / "absent")
