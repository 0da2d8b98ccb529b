"""The measures of whole commands, with planted times, and the settings of these commands."""

from benchmarks import overhead
from benchmarks.measure import read_measures
from conftest import ROOT
from optstate.experiment import configuration


def write_tsv(path, seconds):
    """Write a file in the format of `benchmark:`, with a line for each repetition."""
    lines = [f"{s}\t0:00:0{int(s)}\t12.5\t90" for s in seconds]
    path.write_text("\n".join(["s\th:m:s\tmax_rss\tmean_load", *lines]) + "\n")
    return path


def test_the_overhead_is_split_into_jobs_and_start():
    """The first run starts in 3 s, the second in 4 s. Each job takes 2 s."""
    few, many = [3 + 2 * 2, 4 + 2 * 2], [3 + 6 * 2, 4 + 6 * 2]
    assert overhead.split_overhead(few, many, 2, 6) == ([2, 2], [3, 4])


def test_planted_times_give_all_measures(tmp_path):
    files = {
        "--few-jobs": [5, 6, 5],
        "--many-jobs": [21, 22, 29],
        "--demo": [120],
        "--dry-run": [3, 2, 9],
    }
    arguments = ["--num-jobs", "1", "5", "--output", str(tmp_path / "overhead.csv")]
    for option, seconds in files.items():
        arguments += [option, str(write_tsv(tmp_path / option, seconds))]
    overhead.main(overhead.PARSER.parse_args(arguments))
    rows = {row.measure: row for row in read_measures(tmp_path / "overhead.csv")}
    assert {name: (row.value, row.goal) for name, row in rows.items()} == {
        "job_overhead_seconds": (4, "<= 5"),
        "snakemake_start_seconds": (1, ""),
        "demo_seconds": (120, "<= 300"),
        "dry_run_seconds": (3, "<= 10"),
    }
    assert rows["dry_run_seconds"].low == 2
    assert rows["dry_run_seconds"].high == 9


def test_timed_jobs_take_one_step():
    """The measured time is then almost only overhead."""
    config = configuration.load(ROOT / "config/demo.yaml", ROOT / "benchmarks/jobs.yaml")
    classes = 10  # of digits
    assert list(config["datasets"]) == ["digits"]
    assert config["train_per_class"] * classes == config["batch_size"]
    assert config["sessions"] == [1]


def test_the_timed_dry_run_has_200_jobs():
    config = configuration.load({"seeds": list(range(10))})
    assert len(configuration.all_runs(config).sessions) == 200
    assert "seeds=str(list(range(10)))" in (ROOT / "benchmarks/Snakefile").read_text()
