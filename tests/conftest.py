"""Helpers and fixtures of all tests: tiny images, and a copy of the project for Snakemake."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import forked

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each copy of the project compiles itself once
ROOT = Path(__file__).parents[1]
CLASSES = ("ant", "bee", "cat")
NOTHING = "Nothing to be done"
SHARED = {"finished", "arms", "tested", "rescaled", "undisturbed", "python"}  # slow fixtures
STARTS_OF_PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}

unit_test = ""  # name of the running unit test; empty during other tests
tried: dict[str, str] = {}  # the projects' records of models and optimizers that torch accepted


def refuse_processes(event: str, arguments: tuple) -> None:
    """Refuse to start processes in unit tests, so that these stay fast."""
    if unit_test and event in STARTS_OF_PROCESSES:
        raise RuntimeError(f"{unit_test}: {event}. Move the test from tests/unit to tests/jobs.")


sys.addaudithook(refuse_processes)


@pytest.fixture(autouse=True)
def no_processes_in_unit_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    global unit_test
    unit_test = request.node.name if request.path.is_relative_to(ROOT / "tests/unit") else ""
    yield
    unit_test = ""


def write_images(
    folder: Path, per_class: int = 6, size: int = 32, classes: tuple[str, ...] = CLASSES
) -> Path:
    """Write {train,val}/CLASS/*.png: noise, with a different brightness in each class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for index in range(per_class):
                pixels = rng.integers(0, 60, (size, size, 3)) + 60 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / name / f"{index}.png")
    return folder


def write_tar(images: Path, archive: Path) -> Path:
    """Write a .tgz of a folder, below one top-level folder as in the published archives."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(images, "images")
    return archive


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="number of kills in tests/killer")
    parser.addoption("--alterations", type=int, default=5, help="of finished files")
    parser.addoption("--exhaustive", action="store_true", help="try every case of the slow tests")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run tests that share a fixture in the same process of xdist, and skip the slowest."""
    slow = pytest.mark.skip(reason="slow: run it with --exhaustive")
    for item in items:
        if item.get_closest_marker("exhaustive") and not config.getoption("--exhaustive"):
            item.add_marker(slow)
        for shared in SHARED & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(shared))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def run_module(
    module: str, *arguments: object, environment: dict | None = None, **options
) -> subprocess.CompletedProcess:
    """Run a stage's command as its job does."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")} | (environment or {}),
        capture_output=True,
        text=True,
        **options,
    )


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for ``condition``, at most ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not fulfilled within {seconds} s"
        time.sleep(0.1)


def assert_one_line(result: subprocess.CompletedProcess, *words: str) -> None:
    """Check that the job failed with a one-line error that contains all of the words."""
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


class Project:
    """A copy of the project's files, with a configuration for tiny images.

    A copy of a ``made`` project has its results, and the same jobs are up to date.
    """

    options = ("--cores", "2")  # of Snakemake: where the jobs run

    def __init__(self, folder: Path, made: "Project | None" = None) -> None:
        self.folder = folder
        if made:
            shutil.copytree(made.folder, folder, symlinks=True)
            return
        folder.mkdir()
        for name in ("Snakefile", "README.md", "config", "workflow", "profiles", "envs"):
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignore)
            else:
                shutil.copy(source, folder / name)

    def configure(self, text: str) -> None:
        (self.folder / "tiny.yaml").write_text(text)

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Snakemake. Models and optimizers that it tried before are not tried again."""
        cache = self.folder / ".snakemake/optstate"
        cache.mkdir(parents=True, exist_ok=True)
        for name, content in tried.items():
            (cache / name).write_text(content)
        if "--dry-run" in arguments:
            result = forked.run_snakemake(self.complete(arguments), self.folder)
        else:
            with self.start(*arguments) as process:
                printed = process.communicate()
            result = subprocess.CompletedProcess(process.args, process.returncode, *printed)
        tried.update({path.name: path.read_text() for path in cache.glob("passed-*")})
        return result

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *self.complete(arguments)], cwd=self.folder,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def complete(self, arguments: Iterable[str]) -> list[str]:
        """Return all arguments of the command."""
        return [*self.options, "--configfile", "tiny.yaml", *arguments]

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen]:
        """Run Snakemake during the block, and kill its remaining processes afterwards."""
        with self.start(*arguments) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def find_trainers(self) -> list[int]:
        """Return the ids of this project's running training processes."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                here = (process / "cwd").readlink() == self.folder
                if here and b"\0optstate.training.session\0" in command:
                    found.append(int(process.name))
        return found

    def run(self, *arguments: str) -> str:
        """Run Snakemake, which must succeed. Returns its output."""
        result = self.snakemake(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def fail_dry_run(self, *arguments: str) -> str:
        """Start a dry run, which must fail. Returns its one-line error."""
        result = self.snakemake("--dry-run", "--quiet", "all", *arguments)
        assert result.returncode != 0, result.stdout
        (line,) = [
            line
            for line in (result.stdout + result.stderr).splitlines()
            if not line.startswith(("Using workflow specific profile", "Config file"))
        ]
        assert not (self.folder / "results").exists()
        return line


TINY = """
experiment: tiny
datasets:
  imagenette: null
  imagewoof: null
  noise: {{{source}}}
image_size: 32
model: shufflenet_v2_x0_5
batch_size: 4
sessions: [2, 1, 1]
schedules:
  constant: {{lr: [1.0e-3, 5.0e-4, 3.0e-4]}}
  onecycle: {{initial_lr: [4.0e-5, 2.0e-5, 5.0e-6], max_lr: [1.0e-3, 5.0e-4, 1.0e-4]}}
device: cpu
"""


@pytest.fixture
def project(tmp_path: Path, images: Path) -> Project:
    project = Project(tmp_path / "project")
    project.configure(TINY.format(source=f"folder: {images}"))
    return project


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_archived_images(folder: Path) -> str:
    """Write an archive to ``folder``, and return its data set's configuration."""
    folder.mkdir()
    archive = write_tar(write_images(folder / "images"), folder / "images.tgz")
    return f"archive: {archive}, sha256: {file_sha256(archive)}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Iterator[Project]:
    """A project whose tiny experiment has run. Tests must not change it."""
    root = tmp_path_factory.mktemp("finished")
    project = Project(root / "project")
    project.configure(TINY.format(source=write_archived_images(root / "noise")))
    project.run()
    caches = {".snakemake", "__pycache__"}
    files = [path for path in project.folder.rglob("*") if not caches.intersection(path.parts)]
    times = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    yield project
    assert {path: path.stat().st_mtime_ns for path in times} == times


def exchange_session(session: Path, key: str) -> None:
    """Change a key of what made a finished session. Its files still agree, and have their times."""
    path, listing = session / "made_by.json", session / "session.sha256"
    made_by, time = json.loads(path.read_text()), path.stat().st_mtime
    if key == "configuration":
        made_by[key]["learning_rate"]["lr"] *= 2
    else:
        made_by[key] = "0" * 64
    before = file_sha256(path)
    path.write_text(json.dumps(made_by))
    listing.write_text(listing.read_text().replace(before, file_sha256(path)))
    for file in session.iterdir():
        os.utime(file, (time, time))


def count_jobs(project: Project, *arguments: str) -> dict[str, int]:
    """Return the number of jobs of each rule in a dry run."""
    printed = project.run("--dry-run", *arguments)
    if NOTHING in printed:
        return {}
    table = printed.split("Job stats:")[-1].split("\n\n")[0].splitlines()[3:]
    return {
        rule: int(count)
        for rule, count in (line.split() for line in table if len(line.split()) == 2)
        if rule not in ("total", "all")
    }
