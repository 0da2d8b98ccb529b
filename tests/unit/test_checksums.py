"""Finished files are verified before they are read."""

import contextlib
import hashlib
import json
import os
from multiprocessing.pool import ThreadPool

import pytest

from optstate.checksums import CACHE, file_sha256, read_checksums, verify, write_checksums
from optstate.experiment import integrity
from optstate.experiment.integrity import (
    list_finished_files,
    require_archive,
    require_prepared,
    require_unchanged,
)
from optstate.job import InputError


@pytest.fixture
def files(tmp_path):
    """Two finished files, listed in ``job.sha256``."""
    paths = [tmp_path / "a.csv", tmp_path / "b.pt"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    write_checksums(tmp_path / "job.sha256", paths)
    return paths


def flip_a_byte(path, position: int = 500) -> None:
    """Change one byte, and leave the size and the modification time as they were."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_unchanged_files_are_accepted(files):
    verify(*files)
    verify(*files, cache=True)
    verify(*files, cache=True)


def test_the_list_is_that_of_sha256sum(files, tmp_path):
    assert (tmp_path / "job.sha256").read_text() == "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files
    )
    assert read_checksums(tmp_path) == {path.name: file_sha256(path) for path in files}


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("alter", "error"),
    [
        (flip_a_byte, "changed since it was made"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "changed since it was made"),
        (lambda path: path.write_bytes(b""), "changed since it was made"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.rename(path.with_name("b.pt")), "missing"),
        (lambda path: path.with_name("job.sha256").unlink(), "no .sha256 file in its folder"),
    ],
)
def test_an_altered_file_is_refused(files, alter, error, cache):
    verify(*files, cache=cache)
    alter(files[0])
    with pytest.raises(InputError, match=f"^{files[0]}: {error}"):
        verify(*files, cache=cache)


def test_files_that_changed_places_are_refused(files):
    first, second = (path.read_bytes() for path in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    with pytest.raises(InputError, match=f"^{files[0]}: changed since it was made"):
        verify(*files)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_cache_is_ignored(files, tmp_path, content):
    verify(*files, cache=True)
    (tmp_path / CACHE).write_bytes(content)
    verify(*files, cache=True)


def test_several_jobs_may_write_the_cache_at_once(files):
    with ThreadPool(8) as pool:
        pool.map(lambda _: verify(*files, cache=True), range(200))


def test_a_cache_that_cannot_be_written_is_left_out(files, tmp_path):
    (tmp_path / CACHE).mkdir()  # nobody can replace a folder by a file
    verify(*files, cache=True)


class TestWholeExperiment:
    """What Snakemake's main process finds at its start."""

    def test_all_files_that_changed_are_found(self, tmp_path):
        folder = tmp_path / "results/figures"
        folder.mkdir(parents=True)
        names = ("curve.png", "checkpoint.pt", "train_images.npy")
        for name in names:
            (folder / name).write_bytes(b"0" * 1000)
        write_checksums(folder / "curves.sha256", [folder / name for name in names])
        listings, cache = [folder / "curves.sha256"], tmp_path / "cache.json"
        require_unchanged(listings, cache)
        for name in names:
            flip_a_byte(folder / name)
            with pytest.raises(InputError, match=f"^{folder}/{name}: changed since") as raised:
                require_unchanged(listings, cache)
            assert (f"run once with `-- {folder}/" in str(raised.value)) is name.endswith(".npy")
            (folder / name).unlink()  # Snakemake makes it again
            require_unchanged(listings, cache)

    def test_a_large_file_is_read_only_if_it_was_written_after_its_listing(self, tmp_path):
        checkpoint = tmp_path / "checkpoint.pt"
        checkpoint.write_bytes(b"0" * 1000)
        listing = tmp_path / "session.sha256"
        write_checksums(listing, [checkpoint])
        assert list(list_finished_files([listing])) == []
        time = checkpoint.stat().st_mtime_ns
        flip_a_byte(checkpoint)
        os.utime(checkpoint, ns=(time, time))
        assert [file for file, _ in list_finished_files([listing])] == [checkpoint]

    def test_an_archive_of_another_data_set_is_refused(self, tmp_path):
        require_archive(tmp_path, "0" * 64)  # there is none yet
        (tmp_path / "archive").write_bytes(b"images")
        write_checksums(tmp_path / "archive.sha256", [tmp_path / "archive"])
        require_archive(tmp_path, file_sha256(tmp_path / "archive"))
        with pytest.raises(InputError, match=f"^{tmp_path}: has another archive. Delete this"):
            require_archive(tmp_path, "0" * 64)

    @pytest.mark.parametrize(
        ("found", "is_refused"),
        [
            ({"source_sha256": "1", "image_size": 8, "split": {"folder": "val"}}, False),
            ({"source_sha256": "2", "image_size": 8}, True),
            ({"source_sha256": "1", "image_size": 16}, True),
            ({}, False),  # of an earlier version
        ],
    )
    def test_arrays_of_another_data_set_are_refused(self, tmp_path, found, is_refused):
        expected = {"source_sha256": "1", "image_size": 8, "split": None}
        require_prepared(tmp_path, expected)  # there are none yet
        (tmp_path / "dataset.json").write_text(json.dumps(found))
        refusal = pytest.raises(InputError, match=f"^{tmp_path}: has other images. Delete this")
        with refusal if is_refused else contextlib.nullcontext():
            require_prepared(tmp_path, expected)

    @pytest.mark.parametrize(
        ("number", "end"),
        [(10, r"anew\. Changed, too: .*b\.pt\.$"), (2, r"anew\. Changed, too: .*b\.pt\.$"),
         (1, r"anew\. Changed, too: and 1 more\.$")],
    )  # fmt: skip
    def test_further_files_are_named(self, files, tmp_path, monkeypatch, number, end):
        monkeypatch.setattr(integrity, "MAX_NAMED", number)
        for path in files:
            flip_a_byte(path)
        with pytest.raises(InputError, match=f"a.csv: .*{end}"):
            require_unchanged(tmp_path.glob("*.sha256"), tmp_path / "cache.json")


@pytest.mark.parametrize("content", ["", "\xff", "\n", "abc  a.csv\n", f"{'0' * 64} a.csv\n"])
def test_damaged_listings_are_refused(tmp_path, content):
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "first.sha256").write_text(content)
    with pytest.raises(InputError, match=r"first\.sha256: damaged\. Delete it"):
        verify(tmp_path / "a.csv")


def test_listings_that_disagree_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1")
    write_checksums(tmp_path / "first.sha256", [tmp_path / "a.csv"])
    write_checksums(tmp_path / "second.sha256", [tmp_path / "a.csv"])
    verify(tmp_path / "a.csv")
    (tmp_path / "second.sha256").write_text(f"{'0' * 64}  a.csv\n")
    with pytest.raises(InputError, match=r"second\.sha256: disagrees .* on a\.csv\. Delete it"):
        verify(tmp_path / "a.csv")
