"""The jobs that each change makes stale, in the whole workflow. `pytest -s` prints a table of them.

Dry runs list the jobs that are stale themselves and those that depend on them.
"""

import contextlib
import csv
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grimp
import pytest

from conftest import NOTHING, ROOT, Project, count_jobs, write_archived_images

SCRIPTS = "workflow/scripts/optstate"
REPORT = {"report": 1}
FIGURES = {"curves": 1, "boundary": 1, "differences": 1, "learning_rate": 1} | REPORT
COMPARE = {"compare": 1, "differences": 1} | REPORT
TABLES = {"measure_boundaries": 1} | COMPARE | FIGURES
ANALYSIS = {"collect": 1} | TABLES
TRAINING = {"first_session": 2, "later_session": 4, "last_session": 4} | ANALYSIS
PREPARE = {"prepare": 1} | TRAINING
LAST_OF_ONE_SCHEDULE = {"last_session": 2} | ANALYSIS
ONE_MORE_METHOD = {"later_session": 1, "last_session": 1} | ANALYSIS

EDITS = {  # files that get another line at their end, and the jobs that this makes stale
    f"{SCRIPTS}/data/prepare.py": PREPARE,
    f"{SCRIPTS}/data/unpack.py": PREPARE,
    f"{SCRIPTS}/data/manifest.py": PREPARE,
    f"{SCRIPTS}/training/session.py": TRAINING,
    f"{SCRIPTS}/training/boundary.py": TRAINING,
    f"{SCRIPTS}/experiment/runs.py": ANALYSIS,
    f"{SCRIPTS}/experiment/plan.py": REPORT,
    f"{SCRIPTS}/analysis/collect.py": ANALYSIS,
    f"{SCRIPTS}/analysis/files.py": ANALYSIS,
    f"{SCRIPTS}/analysis/sessions.py": ANALYSIS,
    f"{SCRIPTS}/analysis/tables.py": TABLES,
    f"{SCRIPTS}/analysis/boundaries.py": {"measure_boundaries": 1} | COMPARE,
    f"{SCRIPTS}/analysis/compare.py": COMPARE,
    f"{SCRIPTS}/analysis/statistics.py": COMPARE,
    f"{SCRIPTS}/analysis/figures/__init__.py": FIGURES,
    f"{SCRIPTS}/analysis/figures/style.py": FIGURES,
    f"{SCRIPTS}/analysis/figures/curves.py": {"curves": 1} | REPORT,
    f"{SCRIPTS}/analysis/figures/boundary.py": {"boundary": 1} | REPORT,
    f"{SCRIPTS}/analysis/figures/differences.py": {"differences": 1} | REPORT,
    f"{SCRIPTS}/analysis/figures/learning_rate.py": {"learning_rate": 1} | REPORT,
    f"{SCRIPTS}/analysis/report.py": REPORT,
    f"{SCRIPTS}/analysis/answers.py": REPORT,
    f"{SCRIPTS}/analysis/validity.py": REPORT,
    "workflow/report/curves.rst": REPORT,
    "workflow/report/workflow.rst": REPORT,
    "workflow/report/report.html.j2": REPORT,
}
NO_EFFECT = [  # files that can be edited without making a job stale
    f"{SCRIPTS}/data/fetch.py",  # a checksum verifies its output
    f"{SCRIPTS}/data/packaged.py",
    f"{SCRIPTS}/lr_range_test.py",
    *[
        f"{SCRIPTS}/experiment/{path.name}"
        for path in sorted((ROOT / SCRIPTS / "experiment").glob("*.py"))
        if path.stem not in ("__init__", "runs", "plan")
    ],
    *[f"workflow/rules/{path.name}" for path in sorted((ROOT / "workflow/rules").glob("*.smk"))],
    "workflow/schemas/config.schema.yaml",
    "Snakefile",
    "README.md",
    "config/config.yaml",
    "config/README.md",
    "profiles/default/profile.yaml",
    "tiny.yaml",
]
PACKAGES = {  # packages that get another version in the lock file
    "torch": TRAINING,
    "torchvision": TRAINING,
    "numpy": PREPARE,
    "pillow": PREPARE,
    "pandas": TABLES,
    "scipy": COMPARE,
    "matplotlib": FIGURES,
    "jinja2": REPORT,
    "docutils": REPORT,
    "snakemake": REPORT,  # the report shows its version
    "tensorboard|pytest|uv": {},
}
SETTINGS = {  # values of `--config`
    "schedules={onecycle: {initial_lr: [4e-5, 2e-5, 1e-6]}}": LAST_OF_ONE_SCHEDULE,
    "schedules={onecycle: {max_lr: [1e-3, 4e-4, 1e-4]}}": {"later_session": 2}
    | LAST_OF_ONE_SCHEDULE,
    "seeds=[0, 1]": TRAINING,
    "methods=[constant-new, constant-preserve]": ANALYSIS,
    "boundaries={third: {keep: [exp_avg]}}": REPORT,
    "batch_size=9": TRAINING,
    "train_per_class=5": TRAINING,
    "valid_per_class=5": TRAINING,
    "model=resnet18": TRAINING,
    "subset=seed": TRAINING,
    "normalize=imagenet": TRAINING,
    "image_size=40": PREPARE,
    "deterministic=true": TRAINING,
    "methods=[onecycle-preserve, onecycle-new, constant-preserve, constant-new]": REPORT,
    "keep_checkpoints=last": REPORT,
    "checkpoint_every={steps: 3}": REPORT,
    "mirror=/somewhere": REPORT,
    "primary={measure: final_valid_loss}": COMPARE,
    "equivalence_margin=0.02": COMPARE,
    "equivalence_margin={above_chance: 0.1}": COMPARE,
    "datasets={noise: {target_top1: 0.5}}": {"epochs_to_target": 1} | ANALYSIS,
}


def take_one_of_each(cases: dict[str, dict[str, int]]) -> list:
    """Return a test's cases. By default, it tries the first case of each set of stale jobs."""
    tried, parameters = [], []
    for change, stale in cases.items():
        marks = [pytest.mark.exhaustive] if stale in tried else []
        parameters.append(pytest.param(change, stale, marks=marks))
        tried.append(stale)
    return parameters


def print_row(change: str, found: dict[str, int]) -> None:
    """Print a row of the table."""
    print(f"{change:78} {', '.join(f'{n} {rule}' for rule, n in found.items()) or 'nothing'}")


@contextlib.contextmanager
def edit_file(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """Edit a file for the block. Afterwards it has its former text and time."""
    before, time = path.read_text(), path.stat().st_mtime_ns
    assert edit(before) != before
    path.write_text(edit(before))
    try:
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(time, time))


def test_nothing_is_stale_after_a_run(finished):
    print_row("a second run", count_jobs(finished))
    assert NOTHING in finished.run()


def test_touching_every_file_makes_nothing_stale(finished, tmp_path):
    """This changes only the times of the files."""
    project = Project(tmp_path / "project", finished)
    for path in project.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            path.touch()
    print_row("every source and result touched", found := count_jobs(project))
    assert found == {}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("runs/noise/onecycle/seed0/session1/steps.csv", "first_session"),
        ("runs/noise/onecycle-new/seed0/session2/made_by.json", "later_session"),
        ("runs/noise/onecycle-new/seed0/session3/session.sha256", "last_session"),
        ("tables/collect.sha256", "collect"),
        ("tables/boundaries.sha256", "measure_boundaries"),
        ("tables/compare.sha256", "compare"),
        ("figures/learning_rate.sha256", "learning_rate"),
        ("report.sha256", "report"),
    ],
)
def test_a_deleted_file_is_made_anew(finished, name, rule):
    (path,) = finished.folder.glob(f"results/*/{name}")
    deleted = path.rename(path.with_name("deleted"))
    found = count_jobs(finished)
    deleted.rename(path)
    print_row(f"{name} deleted", found)
    assert found[rule] == 1


@pytest.mark.parametrize(("name", "expected"), take_one_of_each(EDITS))
def test_editing_a_file_makes_its_jobs_stale(finished, name, expected):
    comment = {".j2": "{# more #}\n", ".rst": "\nMore.\n"}.get(Path(name).suffix, "# more\n")
    with edit_file(finished.folder / name, lambda text: f"{text.rstrip()}\n{comment}"):
        print_row(name, found := count_jobs(finished))
    assert found == expected


def test_editing_other_files_makes_nothing_stale(finished):
    with contextlib.ExitStack() as edits:
        for name in NO_EFFECT:
            edits.enter_context(edit_file(finished.folder / name, lambda text: f"{text}# more\n"))
        found = count_jobs(finished)
    for name in NO_EFFECT:
        print_row(name, found)
    assert found == {}


def test_a_reverted_edit_makes_nothing_stale(finished, tmp_path):
    project = Project(tmp_path / "project", finished)
    path = project.folder / f"{SCRIPTS}/training/loop.py"
    with edit_file(path, lambda text: f"{text}# more\n"):
        pass
    path.touch()
    print_row("an edit, reverted", found := count_jobs(project))
    assert found == {}


@pytest.mark.parametrize(("package", "expected"), take_one_of_each(PACKAGES))
def test_another_version_of_a_package_makes_its_jobs_stale(finished, package, expected):
    def bump(text: str) -> str:
        return re.sub(rf"^({package})==\S+", r"\1==99.0", text, flags=re.MULTILINE)

    with edit_file(finished.folder / "envs/requirements.lock", bump):
        print_row(f"{package} in the lock file", found := count_jobs(finished))
    assert found == expected


@pytest.mark.parametrize(("setting", "expected"), take_one_of_each(SETTINGS))
def test_another_setting_makes_its_jobs_stale(finished, setting, expected):
    print_row(setting, found := count_jobs(finished, "--config", setting))
    assert found == expected


def test_a_new_data_set_adds_its_jobs_only(finished, tmp_path):
    source = write_archived_images(tmp_path / "more")
    found = count_jobs(finished, "--config", f"datasets={{more: {{{source}}}}}")
    print_row("datasets={more: ...}", found)
    assert found == {"fetch": 1} | PREPARE | {"curves": 2, "boundary": 2, "differences": 2}


def test_a_new_boundary_adds_its_sessions_only(finished):
    added = ["boundaries={third: {keep: [exp_avg]}}"]
    added += ["methods=[constant-new, constant-preserve, constant-third, onecycle-new]"]
    print_row(" ".join(added), found := count_jobs(finished, "--config", *added))
    assert found == ONE_MORE_METHOD


def test_a_deleted_array_that_is_made_alone_makes_nothing_stale(finished, tmp_path):
    project = Project(tmp_path / "project", finished)
    (array,) = project.folder.glob("results/datasets/*/*/*/train_images.npy")
    array.unlink()
    another_seed = ("--config", "seeds=[0, 1]")
    assert count_jobs(project, *another_seed)["first_session"] == 4
    project.run("--", str(array.relative_to(project.folder)))
    assert count_jobs(project, *another_seed) == TRAINING


def test_a_clone_with_copied_results_is_up_to_date(finished, tmp_path):
    """All files are new and in another place. Only Snakemake's metadata is copied with them."""
    clone = Project(tmp_path / "clone")
    shutil.copy(finished.folder / "tiny.yaml", clone.folder)
    for name in ("results", ".snakemake/metadata"):
        source, target = finished.folder / name, clone.folder / name
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", source, target], check=True)
    print_row("a clone with copied results and metadata", found := count_jobs(clone))
    assert found == {}


def test_every_package_that_a_stage_imports_is_in_its_parameters():
    """Packages that only show progress or curves are exceptions: no output depends on them."""
    without_effect = {"tqdm", "tensorboard"}
    shown = {"snakemake", "pillow", "torch", "torchvision"}  # the report shows their versions
    names = {"PIL": "pillow", "yaml": "pyyaml"}
    lock = (ROOT / "envs/requirements.lock").read_text()
    third_party = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    for rules, folder, files in (
        ("data", "data", ["prepare.py", "unpack.py", "manifest.py"]),
        ("training", "training", ["*.py"]),
        ("analysis", "analysis", ["*.py", "figures/*.py"]),
    ):
        text = (ROOT / f"workflow/rules/{rules}.smk").read_text()
        given = re.findall(r"locked\(([^)]*)\)|_PACKAGES = \[([^]]*)\]", text)
        tracked = set(re.findall(r'"([a-z0-9-]+)"', str(given)))
        imported = {
            names.get(name, name)
            for pattern in files
            for path in (ROOT / SCRIPTS / folder).glob(pattern)
            for name in re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        }
        expected = imported & third_party - without_effect
        assert expected <= tracked
        assert tracked - expected <= (shown if rules == "analysis" else set())


def test_every_rule_lists_the_modules_that_its_command_imports(finished):
    graph = grimp.build_graph("optstate", cache_dir=None)
    printed = finished.snakemake("--detailed-summary").stdout.splitlines()
    start = next(n for n, line in enumerate(printed) if line.startswith("output_file\t"))
    checked = set()
    for row in csv.DictReader(printed[start:], delimiter="\t"):
        module = re.search(r"-m (optstate[\w.]+)", row["shellcmd"])
        if not module or row["rule"] in {"fetch", *checked}:  # a checksum verifies what is fetched
            continue
        checked.add(row["rule"])
        imported = {module[1], *graph.find_upstream_modules(module[1])}
        files = {name.replace(".", "/") for name in imported}
        listed = {
            file.removesuffix(".py").removesuffix("/__init__")
            for file in re.findall(r"optstate/?[\w/]*\.py", row["input-file(s)"])
        }
        assert files <= listed, row["rule"]
    assert {"prepare", "first_session", "collect", "compare", "report"} <= checked
