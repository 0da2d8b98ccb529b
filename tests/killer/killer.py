"""Run a tiny experiment, kill it repeatedly, and check that no bit of its results changes.

    .venv/bin/python tests/killer/killer.py --kills 1000
    .venv/bin/python tests/killer/killer.py --alterations 300

A kill is a signal (SIGKILL, SIGTERM and others) to the running job, to Snakemake or to their
process group, or a disk that is full or fails. It happens at a random moment, or at a random
training step, write, fsync or rename. Snakemake is then run again until the experiment is done.
The results must equal those of an undisturbed run: checkpoints and figures byte for byte, tables
except for their seconds, and the points of TensorBoard's curves. Further experiments are run until
the number of kills is reached.
"""

import argparse
import collections
import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from alterer import alter_repeatedly  # noqa: E402
from conftest import ROOT, Project, write_images, write_tar  # noqa: E402

RECEIVERS = ("process", "snakemake", "group")
STRIKES = [
    "ENOSPC",
    "EIO",
    *[f"{s} {receiver}" for s in ("SIGKILL", "SIGTERM") for receiver in RECEIVERS],
    *["SIGINT process", "SIGINT group", "SIGUSR1 process"],
]
OPERATIONS = {"data": 12, "training": 25, "analysis": 5}  # every job of the stage has more
HASHED = (".pt", ".png", ".svg", ".txt")  # suffixes of results that are compared by their bytes
LONGEST_RUN = 300.0  # seconds; an undisturbed run takes less than a minute
MAX_WAIT = 10.0  # seconds until a kill at a random moment
EXPERIMENT = """
experiment: tiny
datasets: {{imagenette: null, imagewoof: null, noise: {{archive: {archive}, sha256: {sha256}}}}}
image_size: 32
model: mobilenet_v3_small
batch_size: 6
augment: crop_flip
sessions: [3, 2]
schedules:
  constant: null
  onecycle: {{initial_lr: [4.0e-5, 2.0e-5], max_lr: [1.0e-3, 5.0e-4]}}
methods: [onecycle-new, onecycle-preserve]
device: cpu
"""


class KilledProject(Project):
    """A project whose Snakemake is killed."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder)
        self.rng = rng
        self.kinds: collections.Counter[str] = collections.Counter()
        self.journal = folder / "journal"
        self.journal.touch()

    def run_until_done(self, num_kills: int) -> int:
        """Finish the experiment with at most ``num_kills`` kills. Returns their number."""
        kills = 0
        while not self.try_to_finish(kill=kills < num_kills):
            kills += 1
        return kills

    def try_to_finish(self, kill: bool) -> bool:
        """Run Snakemake once. Returns whether it succeeded."""
        strike = self.rng.choice(STRIKES)
        at_operation = " " not in strike or self.rng.random() < 0.7
        fired = self.folder / "fired"
        fired.unlink(missing_ok=True)
        stage = self.choose_stage()
        struck_at = self.rng.randint(1, OPERATIONS[stage]) if kill and at_operation else 0
        environment = {
            "PYTHONPATH": str(HERE),
            "STRIKE": strike,
            "STRIKE_IN": stage,
            "STRIKE_AT": str(struck_at),
            # Most writes are TensorBoard's, so they usually do not count.
            "STRIKE_WITHOUT": self.rng.choice([" ", "tfevents", "tfevents", "tfevents"]),
            "STRIKE_FIRED": str(fired),
            "STEP_JOURNAL": str(self.journal),
        }
        with self.journal.open("a") as file:
            file.write("start\n")
        with (self.folder / "output").open("w+") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--configfile", "tiny.yaml",
                 "--cores", "1" if kill else "2"],  # which changes no result
                cwd=self.folder, env=os.environ | environment,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            if kill and not at_operation:
                moment = self.rng.uniform(0, MAX_WAIT)
                self.strike_at(process, moment, strike, fired)
            self.wait_for_end(process, fired)
            output.seek(0)
            printed = output.read()
        if process.returncode == 0:
            return True
        if "left its lock" in printed:
            self.snakemake("--unlock")
        elif fired.exists():
            self.kinds[strike] += 1
            print(f"{strike:18} at {fired.read_text()}", flush=True)
            return False
        else:
            raise AssertionError(f"ended without a kill:\n{printed}")
        return self.try_to_finish(kill)

    def choose_stage(self) -> str:
        """Choose an unfinished stage to strike in, most often training."""
        results = self.folder / "results"
        if not any(results.glob("datasets/*/*/*/dataset.json")) and self.rng.random() < 0.3:
            return "data"
        return "analysis" if len([*results.glob("tiny/runs/**/epochs.csv")]) == 3 else "training"

    def wait_for_end(self, process: subprocess.Popen, fired: Path) -> None:
        """Wait until Snakemake ends, and kill it if a signal has made it hang.

        Its handler of SIGTERM takes a lock that the interrupted thread may hold.
        """
        try:
            process.wait(LONGEST_RUN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert fired.exists(), "Snakemake hung without a signal"
            self.kinds["Snakemake hung"] += 1

    def strike_at(self, process: subprocess.Popen, moment: float, strike: str, fired: Path) -> None:
        """Send the signal after ``moment`` seconds, if its receiver exists then."""
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            name, receiver = strike.split()
            jobs = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            try:
                if receiver == "group":
                    os.killpg(process.pid, signal.Signals[name])
                elif receiver == "snakemake":
                    process.send_signal(signal.Signals[name])
                elif jobs:
                    os.kill(int(jobs[0]), signal.Signals[name])
                else:
                    return
            except ProcessLookupError:
                return
            fired.write_text(f"{moment:.2f} s")

    def count_repeated_epochs(self) -> tuple[int, int]:
        """Return how many epochs were repeated in total, and the largest number after one kill."""
        seen, repeated = set(), [0]
        for attempt in self.journal.read_text().split("start\n"):
            steps = [line.rsplit(" ", 1) for line in attempt.splitlines()]
            repeated.append(len({epoch for epoch, step in steps if (epoch, step) in seen}))
            seen |= {(epoch, step) for epoch, step in steps}
        return sum(repeated), max(repeated)


def read_results(project: Project) -> dict[str, object]:
    """Read all results of a run that kills must not change, by file."""
    results = project.folder / "results" / "tiny"
    made: dict[str, object] = {}
    for path in sorted(p for suffix in HASHED for p in results.rglob(f"*{suffix}")):
        name = path.relative_to(results).as_posix()
        made[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(results.rglob("*.csv")):
        with path.open(newline="") as file:
            made[path.relative_to(results).as_posix()] = [
                {key: value for key, value in row.items() if "seconds" not in key}
                for row in csv.DictReader(file)
            ]
    for folder in sorted(results.glob("tensorboard/*/*/*")):
        made[folder.relative_to(results).as_posix()] = read_points(folder)
    made["processes"] = [p for p in Path("/proc").glob("[0-9]*") if read_cwd(p) == project.folder]
    made["left in progress"] = [str(p) for p in results.glob("in_progress/**/*") if p.is_file()]
    return made


def read_cwd(process: Path) -> Path | None:
    """Return the working directory of a process, given its folder in /proc."""
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None


def read_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TensorBoard's points by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


def write_experiment(folder: Path) -> str:
    """Write an archive of images. Returns the configuration of its experiment."""
    images = write_images(folder / "images", per_class=12, classes=("ant", "bee"))
    archive = write_tar(images, folder / "images.tgz")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return EXPERIMENT.format(archive=archive, sha256=sha256)


def run_undisturbed(folder: Path) -> Project:
    """Run the experiment without kills. Returns its project."""
    project = Project(folder / "undisturbed")
    project.configure(write_experiment(folder))
    project.run()
    return project


def alter_finished_files(
    undisturbed: Project, folder: Path, num_alterations: int, seed: int
) -> list[str]:
    """Alter a finished experiment ``num_alterations`` times. Returns the differences."""
    project = Project(folder / "altered", undisturbed)
    return alter_repeatedly(project, num_alterations, random.Random(seed), read_results)


def kill_repeatedly(undisturbed: Project, folder: Path, num_kills: int, seed: int) -> list[str]:
    """Kill experiments ``num_kills`` times. Prints the kills by kind; returns the differences."""
    expected = read_results(undisturbed)
    rng, wrong = random.Random(seed), []
    kinds: collections.Counter[str] = collections.Counter()
    kills, repeated, runs = 0, 0, 0
    while kills < num_kills:
        project = KilledProject(folder / f"run{runs}", rng)
        project.configure((undisturbed.folder / "tiny.yaml").read_text())
        kills += project.run_until_done(num_kills - kills)
        made = read_results(project)
        wrong += [
            f"run {runs}: {name} differs"
            for name in sorted(expected.keys() | made.keys())
            if expected.get(name) != made.get(name)
        ]
        epochs, most = project.count_repeated_epochs()
        if most > 1:
            wrong.append(f"run {runs}: {most} epochs repeated after one kill")
        repeated += epochs
        kinds += project.kinds
        runs += 1
        if not wrong:
            shutil.rmtree(project.folder)
    for kind, number in sorted(kinds.items()):
        print(f"{number:5} {kind}")
    print(f"{kills} kills in {runs} runs, {repeated} epochs repeated, {len(wrong)} differences")
    return wrong


PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--kills", type=int, default=20, help="number of kills")
PARSER.add_argument("--alterations", type=int, help="alter finished files so often, do not kill")
PARSER.add_argument("--seed", type=int, default=int(time.time()), help="of the random choices")

if __name__ == "__main__":
    arguments = PARSER.parse_args()
    print(f"seed {arguments.seed}, project {ROOT}")
    temporary = Path(tempfile.mkdtemp(prefix="killer-"))
    made = run_undisturbed(temporary)
    if arguments.alterations:
        wrong = alter_finished_files(made, temporary, arguments.alterations, arguments.seed)
    else:
        wrong = kill_repeatedly(made, temporary, arguments.kills, arguments.seed)
    if wrong:
        sys.exit("\n".join([*wrong, f"see {temporary}"]))
    shutil.rmtree(temporary)
