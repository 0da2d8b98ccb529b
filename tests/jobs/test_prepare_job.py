"""The command that decodes images: its worker processes, and errors that need a process."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, assert_one_line, run_module, write_images, write_tar
from optstate.checksums import write_checksums
from optstate.data import prepare
from optstate.data.manifest import folder_sha256
from optstate.job import InputError

SIZE = 16


def run(output: Path, *arguments: object, workers: int = 1, **options):
    return run_module(
        "optstate.data.prepare", *arguments, "--image-size", SIZE, "--workers", workers,
        "--output", output, "--log", output.with_name("log"), **options,
    )  # fmt: skip


def run_on_folder(folder: Path, output: Path, workers: int = 1, **options):
    digest = folder_sha256(folder)
    return run(output, "--folder", folder, "--sha256", digest, workers=workers, **options)


def test_archives_folders_and_workers_give_the_same_bytes(images, tmp_path):
    tar = write_tar(images, tmp_path / "a.tgz")
    zipped = Path(shutil.make_archive(str(tmp_path / "z"), "zip", images))
    write_checksums(tmp_path / "archive.sha256", [tar, zipped])
    sha256 = folder_sha256(images)
    results = [
        run_on_folder(images, tmp_path / "1"),
        run_on_folder(images, tmp_path / "2", workers=2),
        run(tmp_path / "3", "--archive", tar, "--sha256", sha256),
        run(tmp_path / "4", "--archive", zipped, "--sha256", sha256),
    ]
    assert [r.returncode for r in results] == [0] * 4
    for name in sorted(p.name for p in (tmp_path / "1").iterdir()):
        contents = {(tmp_path / str(n) / name).read_bytes() for n in (1, 2, 3, 4)}
        assert len(contents) == 1, name
    assert len(list((tmp_path / "3").iterdir())) == 6  # the extracted files are removed


def test_workers_are_children_of_this_process(images, tmp_path):
    """This must hold for every default start method, which depends on the Python version."""
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


def test_chunks_keep_the_order_of_images(tmp_path):
    images = write_images(tmp_path / "images", per_class=prepare.CHUNK + 3, size=SIZE)
    for workers in (1, 3):
        output = tmp_path / str(workers)
        assert run_on_folder(images, output, workers).returncode == 0
        expected = [np.asarray(Image.open(p)) for p in sorted((images / "train").rglob("*.png"))]
        assert np.array_equal(np.load(output / "train_images.npy"), expected)


def test_equal_pictures_have_equal_hashes_in_all_workers(images, tmp_path):
    """Python seeds its hashes differently in each process that is not forked."""
    _, (split, _) = prepare.list_images(images)
    traits = []
    for number in range(2):
        with prepare.start_workers(1) as pool:
            output = tmp_path / f"{number}.npy"
            traits.append(prepare.decode_split(split, images, SIZE, pool, output)[0])
    assert np.array_equal(*traits)


def test_an_image_that_does_not_decode_is_one_line(images, tmp_path):
    (images / "val/bee/2.png").write_bytes(b"no image")
    result = run_on_folder(images, tmp_path / "out", workers=2)
    assert_one_line(result, "val/bee/2.png: does not decode as an image", "Replace or remove it")
    assert list((tmp_path / "out").iterdir()) == []


def test_all_images_that_do_not_decode_are_logged(images, tmp_path):
    names = ("train/ant/0.png", "val/bee/2.png", "val/cat/5.png")
    for name in names:
        (images / name).write_bytes(b"no image")
    result = run_on_folder(images, tmp_path / "out", workers=2)
    assert_one_line(result, f"{images}/train/ant/0.png: does not decode", "The log names 2 more")
    log = (tmp_path / "log").read_text()
    for name in names:
        assert f" {name}: does not decode as an image" in log
    assert list((tmp_path / "out").iterdir()) == []


def test_a_changed_archive_is_one_line(images, tmp_path):
    archive = write_tar(images, tmp_path / "a.tgz")
    write_checksums(tmp_path / "archive.sha256", [archive])
    with archive.open("ab") as file:
        file.write(b"x")
    result = run(tmp_path / "out", "--archive", archive)
    assert_one_line(result, f"{archive}: changed since it was made", "Delete it, then run again")
    assert not (tmp_path / "out").exists()


def test_files_that_are_left_out_are_one_line_on_the_terminal(images, tmp_path):
    os.mkfifo(images / "train/ant/0.png.fifo")
    (images / "val/cat/1.heic").touch()
    result = run_on_folder(images, tmp_path / "out")
    assert result.returncode == 0
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("2 files left out")


def kill_this_process(task: tuple) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error(images, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_decode_chunk", kill_this_process)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="a decoding process was killed.* Use fewer cores"):
        prepare.prepare(images, SIZE, 2, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_size_limit_is_one_line(images, tmp_path):
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    assert_one_line(
        run_on_folder(images, tmp_path / "out", preexec_fn=limit_file_size), "ulimit -f"
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_the_manifest_is_the_output_of_sha256sum(images):
    for name in ("two\nlines.png", "back\\slash.png", "re\rturn.png", "e ñ'\".png"):
        shutil.copy(images / "train/ant/0.png", images / "train/ant" / name)
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
    printed = subprocess.run(["sha256sum", *names], cwd=images, capture_output=True).stdout
    assert folder_sha256(images) == hashlib.sha256(printed).hexdigest()
