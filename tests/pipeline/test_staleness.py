"""What a change makes stale, over the whole DAG: `pytest -s` prints the table.

Dry runs tell it: they list all that is stale, and all that follows from it.
"""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import NOTHING, ROOT, Project, archived, jobs

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

EDITS = {  # a comment, or a line, at the end of
    f"{SCRIPTS}/data/prepare.py": PREPARE,
    f"{SCRIPTS}/data/unpack.py": PREPARE,
    f"{SCRIPTS}/data/manifest.py": PREPARE,
    f"{SCRIPTS}/training/session.py": TRAINING,
    f"{SCRIPTS}/training/boundary.py": TRAINING,
    f"{SCRIPTS}/experiment/runs.py": ANALYSIS,
    f"{SCRIPTS}/analysis/collect.py": ANALYSIS,
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
    "workflow/report/curves.rst": REPORT,
    "workflow/report/workflow.rst": REPORT,
    "workflow/report/report.html.j2": REPORT,
}
NO_EFFECT = [
    f"{SCRIPTS}/data/fetch.py",  # its output is verified, whatever made it
    f"{SCRIPTS}/data/packaged.py",
    f"{SCRIPTS}/analysis/show.py",
    f"{SCRIPTS}/lr_range_test.py",
    *[
        f"{SCRIPTS}/experiment/{name}.py"
        for name in ("configuration", "schema", "rules", "check", "lock", "estimate", "requeue")
    ],
    *[f"workflow/rules/{name}.smk" for name in ("common", "data", "training", "analysis")],
    "workflow/schemas/config.schema.yaml",
    "Snakefile",
    "README.md",
    "config/config.yaml",
    "config/README.md",
    "profiles/default/profile.yaml",
    "tiny.yaml",
]
PACKAGES = {  # another version in the lock file of
    "torch": TRAINING,
    "torchvision": TRAINING,
    "numpy": PREPARE,
    "pillow": PREPARE,
    "pandas": TABLES,
    "scipy": COMPARE,
    "statsmodels": COMPARE,
    "matplotlib": FIGURES,
    "jinja2": REPORT,
    "docutils": REPORT,
    "snakemake": REPORT,  # which shows it
    "tensorboard|pytest|uv": {},
}
SETTINGS = {  # on the command line
    "schedules={onecycle: {initial_lr: [4e-5, 2e-5, 1e-6]}}": LAST_OF_ONE_SCHEDULE,
    "schedules={onecycle: {max_lr: [1e-3, 4e-4, 1e-4]}}": {"later_session": 2}
    | LAST_OF_ONE_SCHEDULE,
    "seeds=[0, 1]": TRAINING,
    "methods=[constant-new, constant-preserve]": ANALYSIS,
    "boundaries={third: {keep: [exp_avg]}}": REPORT,
    "batch_size=9": TRAINING,
    "train_per_class=5": TRAINING,
    "valid_per_class=5": TRAINING,
    "model=shufflenet_v2_x0_5": TRAINING,
    "image_size=40": PREPARE,
    "deterministic=true": TRAINING,
    "methods=[onecycle-preserve, onecycle-new, constant-preserve, constant-new]": REPORT,
    "keep_checkpoints=last": REPORT,
    "checkpoint_every={steps: 3}": REPORT,
    "mirror=/somewhere": REPORT,
    "primary={measure: final_valid_loss}": COMPARE,
    "equivalence_margin=0.02": COMPARE,
    "datasets={noise: {target_top1: 0.5}}": {"epochs_to_target": 1} | ANALYSIS,
}


def report(change: str, found: dict[str, int]) -> None:
    """Print a row of the table."""
    print(f"{change:78} {', '.join(f'{n} {rule}' for rule, n in found.items()) or 'nothing'}")


@contextlib.contextmanager
def edited(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """Within the block the file has other text; afterwards the same again, written anew."""
    before = path.read_text()
    assert edit(before) != before
    path.write_text(edit(before))
    try:
        yield
    finally:
        path.write_text(before)


def test_nothing_is_stale(finished):
    report("a second run", jobs(finished))
    assert NOTHING in finished.run()


def test_touching_every_file(finished):
    for path in finished.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            path.touch()
    report("every source and result touched", found := jobs(finished))
    assert found == {}


@pytest.mark.parametrize(("name", "expected"), EDITS.items())
def test_editing_a_file(finished, name, expected):
    comment = {".j2": "{# more #}\n", ".rst": "\nMore.\n"}.get(Path(name).suffix, "# more\n")
    with edited(finished.folder / name, lambda text: f"{text.rstrip()}\n{comment}"):
        report(name, found := jobs(finished))
    assert found == expected


def test_editing_files_without_effect(finished):
    with contextlib.ExitStack() as edits:
        for name in NO_EFFECT:
            edits.enter_context(edited(finished.folder / name, lambda text: f"{text}# more\n"))
        found = jobs(finished)
    for name in NO_EFFECT:
        report(name, found)
    assert found == {}


def test_reverting_edits(finished):
    report("all of these edits reverted", found := jobs(finished))
    assert found == {}


@pytest.mark.parametrize(("package", "expected"), PACKAGES.items())
def test_another_version_in_the_lock_file(finished, package, expected):
    def bump(text: str) -> str:
        return re.sub(rf"^({package})==\S+", r"\1==99.0", text, flags=re.MULTILINE)

    with edited(finished.folder / "envs/requirements.lock", bump):
        report(f"{package} in the lock file", found := jobs(finished))
    assert found == expected


@pytest.mark.parametrize(("setting", "expected"), SETTINGS.items())
def test_another_setting(finished, setting, expected):
    report(setting, found := jobs(finished, "--config", setting))
    assert found == expected


def test_a_new_data_set(finished, tmp_path):
    source = archived(tmp_path / "more")
    found = jobs(finished, "--config", f"datasets={{more: {{{source}}}}}")
    report("datasets={more: ...}", found)
    assert found == {"fetch": 1} | PREPARE | {"curves": 2, "boundary": 2, "differences": 2}


def test_a_new_boundary(finished):
    added = ["boundaries={third: {keep: [exp_avg]}}"]
    added += ["methods=[constant-new, constant-preserve, constant-third, onecycle-new]"]
    report(" ".join(added), found := jobs(finished, "--config", *added))
    assert found == ONE_MORE_METHOD


def test_a_clone_with_copied_results(finished, tmp_path):
    """Every file is new, and in another place; only what Snakemake noted comes along."""
    clone = Project(tmp_path / "clone")
    shutil.copy(finished.folder / "tiny.yaml", clone.folder)
    for name in ("results", ".snakemake/metadata"):
        source, target = finished.folder / name, clone.folder / name
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", source, target], check=True)
    report("a clone with copied results and metadata", found := jobs(clone))
    assert found == {}


def test_every_package_that_a_stage_imports_is_in_its_parameters():
    """Except for those that show progress and curves, which no output depends on."""
    unseen = {"tqdm", "tensorboard"}
    shown = {"snakemake", "pillow", "torch", "torchvision"}  # by the report
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
        expected = imported & third_party - unseen
        assert expected <= tracked
        assert tracked - expected <= (shown if rules == "analysis" else set())
