"""Archives that are refused: each raises one error that names the archive, and leaves no files."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from conftest import write_tar
from optstate.data import unpack
from optstate.data.unpack import find_root, unpack_temporarily
from optstate.job import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out/extracting"


def assert_refused(archive: Path, folder: Path, message: str) -> None:
    with (
        pytest.raises(InputError, match=message) as caught,
        unpack_temporarily(archive, folder),
    ):
        pass
    assert str(caught.value).startswith(f"{archive}: ")
    assert not folder.exists()


def write_member(archive: Path, member: tarfile.TarInfo, content: bytes = b"", mode="w") -> Path:
    with tarfile.open(archive, mode, format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(content))
    return archive


def make_member(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def test_files_exist_during_the_block(images, tmp_path, folder):
    (folder / "train").mkdir(parents=True)  # left by a job that was killed
    (folder / "train/old.png").touch()
    with unpack_temporarily(write_tar(images, tmp_path / "a.tgz"), folder) as root:
        found = {p.relative_to(root): p.read_bytes() for p in root.rglob("*.png")}
    assert found == {p.relative_to(images): p.read_bytes() for p in images.rglob("*.png")}
    assert not folder.exists()


def test_errors_in_the_block_name_the_archive(images, tmp_path, folder):
    archive = write_tar(images, tmp_path / "a.tgz")
    with (
        pytest.raises(InputError, match=f"^{archive}/images/val/bee/2.png: bad$"),
        unpack_temporarily(archive, folder) as root,
    ):
        raise InputError(f"{root}/val/bee/2.png: bad")


@pytest.mark.parametrize("top", [".", "images", "images/160px"])
@pytest.mark.parametrize("name", ["train", "val", "valid", "validation"])
def test_the_root_is_found_below_single_folders(tmp_path, top, name):
    images = tmp_path / top
    (images / name / "ant").mkdir(parents=True)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".cache").mkdir()
    assert find_root(tmp_path) == images


def test_a_truncated_archive_is_refused(images, tmp_path, folder):
    archive = write_tar(images, tmp_path / "a.tgz")
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert_refused(archive, folder, "damaged.* Replace it")


def test_a_file_that_is_no_archive_is_refused(tmp_path, folder):
    (tmp_path / "a.tgz").write_bytes(b"hello")
    assert_refused(tmp_path / "a.tgz", folder, "neither a tar nor a zip archive")


def test_an_encrypted_archive_is_refused(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("train/a/x.png", b"x")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1  # the bit that means encrypted
    (tmp_path / "a.zip").write_bytes(content)
    assert_refused(tmp_path / "a.zip", folder, "encrypted.* Replace it")


@pytest.mark.parametrize("name", ["../outside.png", "train/../../outside.png"])
def test_a_tar_member_outside_the_folder_is_refused(tmp_path, folder, name):
    archive = write_member(tmp_path / "a.tgz", make_member(name, size=3), b"bad")
    assert_refused(archive, folder, "unsafe.*outside.png")
    assert not list(tmp_path.rglob("outside.png"))


def test_a_zip_member_outside_the_folder_is_refused(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("../outside.png", b"bad")
    assert_refused(tmp_path / "a.zip", folder, "unsafe.*outside.png")
    assert not list(tmp_path.rglob("outside.png"))


def test_a_tar_link_outside_the_folder_is_refused(tmp_path, folder):
    member = make_member("train", type=tarfile.SYMTYPE, linkname="/etc")
    assert_refused(write_member(tmp_path / "a.tar", member), folder, "unsafe")


def test_a_device_in_a_tar_is_refused(tmp_path, folder):
    member = make_member("train/a/zero.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
    assert_refused(write_member(tmp_path / "a.tar", member), folder, "unsafe")


def test_an_absolute_tar_member_stays_inside_the_folder(tmp_path, folder):
    outside = tmp_path / "outside.png"
    archive = write_member(tmp_path / "a.tar", make_member(str(outside), size=3), b"bad")
    with unpack_temporarily(archive, folder):
        assert [p.name for p in folder.rglob("*.png")] == ["outside.png"]
        assert not outside.exists()


def test_a_tar_bomb_is_refused(tmp_path, folder):
    """A header that announces 4 TB is refused before anything is unpacked."""
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.addfile(make_member("train/a/x.png", size=4 * 10**12))
    assert_refused(tmp_path / "a.tgz", folder, "decompression bomb.*1.0 GB")


def test_a_bomb_of_many_small_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "ALLOWED_BYTES", 1_000_000)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for number in range(1000):
            tar.addfile(make_member(f"train/a/{number}.png"))
    with pytest.raises(InputError, match="decompression bomb"):
        unpack.extract(tmp_path / "a.tgz", tmp_path / "extracted")
    assert list((tmp_path / "extracted").iterdir()) == []


def test_a_bomb_in_a_header_is_refused(tmp_path, folder):
    member = make_member("train/a/x.png", pax_headers={"comment": "x" * 2_000_000})
    archive = write_member(tmp_path / "a.tgz", member, mode="w:gz")
    assert_refused(archive, folder, "decompression bomb")


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "ALLOWED_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("train/a/x.png", bytes(10_000_000))
    with pytest.raises(InputError, match="decompression bomb"):
        unpack.extract(tmp_path / "a.zip", tmp_path / "extracted")
    assert list((tmp_path / "extracted").iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("mtime", "1e30"), ("mtime", "nan"), ("path", "a\0b"), ("GNU.sparse.size", "x")],
)
def test_a_tar_with_invalid_properties_is_refused(tmp_path, folder, key, value):
    member = make_member("train/a/x.png", pax_headers={key: value})
    assert_refused(write_member(tmp_path / "a.tar", member), folder, "damaged")


def test_a_zip_with_an_undecodable_name_is_refused(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("train/a/é.png", b"x")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace("é".encode(), b"\xff\xfe"))
    assert_refused(tmp_path / "a.zip", folder, "damaged")


def test_a_full_disk_is_an_error(images, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    archive = write_tar(images, tmp_path / "a.tgz")
    with (
        pytest.raises(InputError, match="are needed and .* are free"),
        unpack_temporarily(archive, folder),
    ):
        pass
    assert not folder.exists()


def test_errors_of_the_disk_are_not_blamed_on_the_archive(images, tmp_path, folder, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tarfile.TarFile, "extractall", fail)
    with (
        pytest.raises(OSError, match="No space left"),
        unpack_temporarily(write_tar(images, tmp_path / "a.tgz"), folder),
    ):
        pass
    assert not folder.exists()
