"""The tutorial's commands, run as they stand, but with two seeds unless --exhaustive is given."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Project

pytestmark = pytest.mark.xdist_group("tutorial")  # the tests share an experiment
TEXT = (ROOT / "docs/tutorial.md").read_text()
COMMANDS = "\n".join(re.findall("```bash\n(.*?)```", TEXT, re.DOTALL))
SEEDS = "seeds: [0, 1, 2, 3, 4, 5, 6, 7]"


@pytest.fixture(scope="module")
def num_seeds(request) -> int:
    return 8 if request.config.getoption("--exhaustive") else 2


@pytest.fixture(scope="module")
def done(tmp_path_factory, num_seeds) -> tuple[Path, str]:
    """The project's folder after the tutorial, and what was printed."""
    folder = Project(tmp_path_factory.mktemp("tutorial") / "project").folder
    (folder / ".venv").symlink_to(Path(sys.prefix))
    assert SEEDS in COMMANDS
    commands = COMMANDS.replace(SEEDS, f"seeds: {list(range(num_seeds))}")
    script = f"set -euo pipefail\n{commands}"
    result = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def test_it_ends_with_a_verdict(done, num_seeds):
    folder, printed = done
    assert re.search(f"- constant, final valid loss, {num_seeds} seeds: .+", printed)
    with (folder / "results/mine/tables/comparisons.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["primary"] == "true"]
    assert [(row["schedule"], row["boundary"], row["n"]) for row in rows] == [
        ("constant", "preserve", str(num_seeds))
    ]


def test_only_the_state_differs_at_first(done, num_seeds):
    """The first loss is that of the checkpoint's weights, and the second depends on the state."""
    folder, _ = done
    with (folder / "results/mine/tables/steps.csv").open() as file:
        losses = {
            (row["boundary"], row["seed"], row["step"]): row["loss"] for row in csv.DictReader(file)
        }
    for seed in map(str, range(num_seeds)):
        assert losses["new", seed, "1"] == losses["preserve", seed, "1"]
        assert losses["new", seed, "2"] != losses["preserve", seed, "2"]
        assert float(losses["new", seed, "1"]) < 2  # an untrained model has log(10) = 2.3


def test_what_it_names_exists(done):
    folder, printed = done
    for path in re.findall(r"`(results/mine/[\w./]+)`", TEXT):
        assert (folder / path).exists(), path
    assert "results/mine/report.html" in printed
    page = (folder / "results/mine/report.html").read_text()
    assert '<h2 id="dataset-photos">photos: curves</h2>' in page
    assert "photos: train loss of the steps around the boundaries" in page


def test_the_changes_at_its_end_are_valid(done, num_seeds):
    folder, _ = done
    changes = re.findall(r"\| `((?:boundaries|sessions): .*?)`(?:,| \|)(.*)", TEXT)
    assert len(changes) == 4
    for change, rest in changes:
        method = re.search("add `(.*?)`", rest)
        methods = ["constant-new", "constant-preserve", *([method[1]] if method else [])]
        values = [change.replace(": ", "=", 1), f"methods=[{', '.join(methods)}]"]
        if "three values" in rest:
            values.append("schedules={constant: {lr: [1e-3, 1e-3, 1e-3]}}")
        plan(folder, "my/experiment.yaml", "--config", *values)
    (differences,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (folder / "my/weights_only.yaml").write_text(differences)
    planned = plan(folder, "my/experiment.yaml", "my/weights_only.yaml")
    assert "--optimizer-state" not in planned
    assert len(re.findall('--spec .*"rebuild_steps": 20', planned)) == num_seeds


def plan(folder: Path, *configuration: str) -> str:
    """Return what a dry run prints."""
    command = [".venv/bin/snakemake", "--cores", "2", "-n", "--printshellcmds", "--configfile"]
    result = subprocess.run([*command, *configuration], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr
