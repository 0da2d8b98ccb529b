"""Alter finished files at random, run Snakemake again, and check that no result is wrong.

Called by `killer.py --alterations N`. An alteration flips a byte, cuts, empties, exchanges or
deletes a finished file, often under its old modification time. Half of the times, outputs of a
later job are deleted as well, so that the altered file is used. Then either every table and figure
equals that of an undisturbed run, or Snakemake has refused in one line that names a file. In that
case the file is deleted, as the line says, and Snakemake is run again.
"""

import collections
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from conftest import Project

SHOWN = (".csv", ".png", ".svg", ".txt")  # suffixes of results that are compared
MAX_ALTERATIONS = 5  # between two runs
MAX_REFUSALS = 20  # in a row; each names another file
REFUSAL = re.compile(r"^(?:error|configuration): (results/[^:]+): .*(?:Delete|Run)", re.MULTILINE)
Alteration = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    """Remove the end of the file."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def empty(path: Path, rng: random.Random) -> None:
    """Remove the content."""
    os.truncate(path, 0)


def exchange(path: Path, rng: random.Random) -> None:
    """Put another file of the same suffix in its place."""
    others = [p for p in list_finished_files(find_root(path)) if p.suffix == path.suffix]
    contents = [c for other in others if (c := other.read_bytes()) != path.read_bytes()]
    if contents:
        path.write_bytes(rng.choice(contents))
    else:
        flip(path, rng)


def delete(path: Path, rng: random.Random) -> None:
    """Delete the file."""
    path.unlink()


ALTERATIONS: list[Alteration] = [flip, flip, cut, empty, exchange, delete]


def find_root(path: Path) -> Path:
    """Return the folder of all results."""
    return next(parent for parent in path.parents if parent.name == "results")


def list_finished_files(results: Path) -> list[Path]:
    """Return every finished file that a job lists, and the lists themselves."""
    return [
        path
        for path in sorted(results.rglob("*"))
        if path.is_file() and path.name[0] != "." and "tensorboard" not in path.parts
        and path.name != "README.md" and path.stat().st_size
    ]  # fmt: skip


def alter(path: Path, rng: random.Random) -> str:
    """Alter a file, half of the times under its old modification time. Returns what was done."""
    alteration, before = rng.choice(ALTERATIONS), path.stat()
    alteration(path, rng)
    hidden = path.exists() and rng.random() < 0.5
    if hidden:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return alteration.__name__ + (" under its old time" if hidden else "")


def delete_a_later_output(results: Path, rng: random.Random) -> str:
    """Delete the outputs of a job that reads finished files. Returns which."""
    folders = [*results.glob("tiny/runs/*/*/*/session2"), *results.glob("tiny/tables"),
               *results.glob("tiny/figures/noise"), *results.glob("tiny/runs")]  # fmt: skip
    folder = rng.choice(folders)
    shutil.rmtree(folder)
    return folder.relative_to(results).as_posix()


def run_until_done(project: Project) -> list[str]:
    """Run Snakemake, deleting the file that each refusal names. Returns the refusals."""
    refusals: list[str] = []
    while True:
        result = project.snakemake()
        printed = result.stdout + result.stderr
        assert "Traceback" not in printed, printed
        assert "please report" not in printed, printed
        if result.returncode == 0:
            return refusals
        named = REFUSAL.findall(printed)
        assert named, f"ended without a line that names a file:\n{printed}"
        assert len(refusals) < MAX_REFUSALS, "\n".join(refusals)
        refusals += named
        for name in named:
            (project.folder / name).unlink(missing_ok=True)


def alter_repeatedly(
    project: Project,
    num_alterations: int,
    rng: random.Random,
    read_results: Callable[[Project], dict[str, object]],
) -> list[str]:
    """Alter a finished experiment ``num_alterations`` times. Returns the differences."""

    def read_shown_results() -> dict[str, object]:
        made = read_results(project)
        return {name: made[name] for name in made if name.endswith(SHOWN)}

    results = project.folder / "results"
    expected, wrong, counts = read_shown_results(), [], collections.Counter[str]()
    number = 0
    while number < num_alterations:
        paths = rng.sample(list_finished_files(results), rng.randint(1, MAX_ALTERATIONS))
        number += len(paths)
        what = "; ".join(f"{path.relative_to(results)}: {alter(path, rng)}" for path in paths)
        if rng.random() < 0.5:
            what += f"; deleted {delete_a_later_output(results, rng)}"
        refusals = run_until_done(project)
        outcome = "refused" if refusals else "made anew or not used"
        print(f"{number:4} {what}: {outcome}", flush=True)
        counts[outcome] += 1
        made = read_shown_results()
        for name in sorted(expected.keys() | made.keys()):
            if expected.get(name) != made.get(name):
                wrong.append(f"{what}: {name} differs")
                print(wrong[-1], flush=True)
    print(f"{number} alterations: {dict(counts)}, {len(wrong)} differences")
    return wrong
