"""The measurements, with planted times and tiny models."""

import itertools
import math
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data_path, loop, sharing, step, summary
from benchmarks.measure import (
    Measure,
    describe_machine,
    interval,
    median,
    ratio_of_sums,
    read_measures,
    session_spec,
    write_measures,
)
from benchmarks.peer import ours
from optstate.training.compute import set_up
from sessions import write_arrays

CPU = torch.device("cpu")
SETTINGS = {
    "model": "squeezenet1_1", "image_size": 32, "batch_size": 4, "threads": 1, "device": "cpu",
    "epochs": {"loop": 2},
}  # fmt: skip


def read_by_name(path) -> dict[str, Measure]:
    return {row.measure: row for row in read_measures(path)}


class TestRows:
    @pytest.mark.parametrize(
        ("value", "goal", "met"),
        [
            (0.98, ">= 0.98", True), (0.9799, ">= 0.98", False), (5.0, "<= 5", True),
            (5.1, "<= 5", False), (1.0, "", None), (math.nan, ">= 1", False),
        ],
    )  # fmt: skip
    def test_a_goal_is_met_or_not(self, value, goal, met):
        assert Measure("m", "cpu", value, value, value, goal).is_met is met

    def test_rows_are_the_same_after_writing_and_reading(self, tmp_path):
        rows = [Measure("a", "cpu", 0.98, 0.97, 0.99, ">= 0.9"), Measure("b", "cuda", 3, 2, 4)]
        write_measures(tmp_path / "rows.csv", rows)
        assert read_measures(tmp_path / "rows.csv") == rows
        head = (tmp_path / "rows.csv").read_text().splitlines()[0]
        assert head == "measure,device,value,low,high,goal"

    def test_the_interval_covers_the_ratio(self):
        """It should cover the ratio for 95 % of planted measurements."""
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(60):
            speed = rng.uniform(0.9, 1.1, 30)  # of the machine during each pair
            value, low, high = ratio_of_sums(
                2 * speed + rng.normal(0, 0.1, 30), speed + rng.normal(0, 0.1, 30)
            )
            assert low < value < high
            covered += low <= 2 <= high
        assert covered >= 50

    def test_the_interval_of_one_sample_is_a_point(self):
        assert median([3.0]) == (3, 3, 3)
        assert interval([[1, 2, 3, 10]], np.median)[0] == 2.5

    def test_the_table_names_other_sizes(self, tmp_path, capsys):
        paths = [tmp_path / size / "loop.csv" for size in ("224px", "128px")]
        for path, value in zip(paths, (0.99, 0.9), strict=True):
            write_measures(path, [Measure("loop_efficiency", "cuda", value, 0.8, 1, ">= 0.98")])
        alone = tmp_path / "orchestration.csv"
        write_measures(alone, [Measure("unmeasured", "cpu", *[math.nan] * 3, ">= 1")])
        summary.main(SimpleNamespace(measures=[*paths, alone], main_size=224, output=tmp_path))
        rows = read_by_name(tmp_path / "summary.csv")
        assert list(rows) == ["loop_efficiency", "loop_efficiency_128px", "unmeasured"]
        table = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in table[-3:]] == ["met", "MISSED", "measured"]
        assert f"cores: {describe_machine()['cores']}" in table


class TestStretches:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A fake clock. The bare step advances it by 2 s."""
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(loop, "now", lambda _: clock.now)
        clock.bare_step = lambda: self.advance(clock, 2)
        return clock

    @staticmethod
    def advance(clock, seconds):
        clock.now += seconds

    def test_session_and_bare_step_are_timed_separately(self, clock):
        stretches = loop.Stretches(clock.bare_step, CPU)
        validate = stretches.leave_out(lambda: [self.advance(clock, 100), stretches.after_step()])
        for number in range(25):
            self.advance(clock, 3)
            stretches.after_step()
            if number in (4, 19):
                validate()
        self.advance(clock, 5)  # the state is saved
        stretches.end_session()
        assert stretches.steps == [10, 10, 5]
        assert stretches.session == [30, 30, 20]
        assert stretches.bare == [20, 20, 10]

    def test_time_after_the_last_full_turn_belongs_to_it(self, clock):
        stretches = loop.Stretches(clock.bare_step, CPU)
        for _ in range(10):
            self.advance(clock, 3)
            stretches.after_step()
        self.advance(clock, 5)
        stretches.end_session()
        assert stretches.session == [35]


def test_a_whole_session_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_EPOCH", 13)
    monkeypatch.setattr(loop, "NUM_VALID", 10)
    monkeypatch.setattr(loop, "DATA_EPOCHS", 2)
    seen = []
    train = loop.train
    monkeypatch.setattr(loop, "train", lambda *arguments: seen.append(train(*arguments)))
    output = tmp_path / "bench" / "loop.csv"
    output.parent.mkdir()
    loop.main(SimpleNamespace(settings=SETTINGS, output=output))
    assert (seen[0].epoch, seen[0].step) == (2, 26)
    rows = read_by_name(output)
    assert rows["loop_efficiency"].goal == ">= 0.98"
    assert rows["loop_efficiency"].value > 0
    ratio = rows["session_images_per_second"].value / rows["bare_step_images_per_second"].value
    assert rows["loop_efficiency"].value == pytest.approx(ratio, rel=0.01)
    assert rows["data_path_share_of_step"].value > 0
    assert list(output.parent.iterdir()) == [output]


def test_an_epoch_of_this_project_is_timed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "STEPS_PER_EPOCH", 5)
    spec = session_spec(SETTINGS)
    arrays = loop.write_noise(tmp_path / "arrays", spec)
    ended = []

    def begin() -> None:
        if ended:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.train(SETTINGS, arrays, begin, lambda *arguments, **_: ended.append(arguments))
    ((num_images, num_steps, loss),) = ended
    assert (num_images, num_steps) == (5 * spec.batch_size, 5)
    assert loss > 0


def test_without_a_compiler_its_measures_are_not_numbers(monkeypatch):
    def refuse() -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(step, "make_bare_step", lambda *_: refuse)
    spec, compute = step.session_spec(SETTINGS), step.set_up(step.session_spec(SETTINGS))
    measures = step.measure_compilation(spec, compute, refuse)
    assert [measure.measure for measure in measures] == list(step.OF_COMPILATION)
    assert all(math.isnan(measure.value) for measure in measures)


def test_a_job_that_ended_is_not_ready():
    ours, theirs = multiprocessing.Pipe()
    theirs.send("ready")
    theirs.close()
    assert sharing.is_ready(ours)
    assert not sharing.is_ready(ours)


def test_every_way_to_compute_a_step_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "NUM_ROUNDS", 2)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    step.main(SimpleNamespace(settings=SETTINGS, output=tmp_path / "step.csv"))
    assert list(read_by_name(tmp_path / "step.csv")) == [
        "channels_last_gain", "fused_optimizer_gain", "bfloat16_gain", "threads_gain",
        "compile_gain", "compile_seconds", "compile_break_even_steps",
    ]  # fmt: skip


def test_compiling_pays_off_after_its_cost_divided_by_its_gain(monkeypatch):
    """The first step takes 60 s, and later ones 1 s instead of 1.5 s: it pays off in 120 steps."""
    clock = SimpleNamespace(now=0.0, compiled=False)
    jitter = itertools.cycle([-0.1] * 4 + [0] * 4 + [0.1] * 4)

    def compiled_step():
        clock.now += 1 if clock.compiled else 60
        clock.compiled = True

    def eager_step():
        clock.now += 1.5 + next(jitter)

    monkeypatch.setattr(step, "now", lambda _: clock.now)
    monkeypatch.setattr(step, "make_bare_step", lambda *_: compiled_step)
    spec = session_spec(SETTINGS)
    rows = step.measure_compilation(spec, set_up(spec), eager_step)
    assert [row.value for row in rows] == [pytest.approx(v, rel=0.05) for v in (1.5, 60, 120)]
    gain, _, steps = rows
    assert gain.low < gain.value < gain.high
    assert steps.low < steps.value < steps.high


def test_a_bare_step_trains_as_configured():
    spec = session_spec(SETTINGS | {"model": "resnet18"})
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        models = []
        make_model = step.make_model
        patched.setattr(step, "make_model", lambda *a: models.append(make_model(*a)) or models[-1])
        bare_step = step.make_bare_step(spec, set_up(spec))
    (model,) = models
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    before = model.fc.weight.detach().clone()
    bare_step()
    assert not torch.equal(model.fc.weight, before)


def test_the_data_path_is_compared_with_others(tmp_path, monkeypatch):
    monkeypatch.setattr(data_path, "NUM_ROUNDS", 2)
    monkeypatch.setattr(data_path, "NUM_REPEATS", 2)
    for class_, number in (("a", 8), ("b", 9)):  # as many as in the arrays
        (tmp_path / "images/train" / class_).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (40, 50)).save(tmp_path / f"images/train/{class_}/{index}.jpg")
    arrays = write_arrays(tmp_path / "arrays")
    arguments = SimpleNamespace(
        settings=SETTINGS, images=tmp_path / "images", arrays=arrays, output=tmp_path / "out.csv"
    )
    data_path.main(arguments)
    rows = read_by_name(tmp_path / "out.csv")
    assert rows["data_path_vs_imagefolder"].goal == ">= 35"
    for other in ("copy", "imagefolder", "article"):
        ratio = rows["data_path_images_per_second"].value / rows[f"{other}_images_per_second"].value
        assert rows[f"data_path_vs_{other}"].value == pytest.approx(ratio, rel=0.01)
    (tmp_path / "images/train/a/0.jpg").unlink()
    with pytest.raises(RuntimeError, match="different numbers of images"):
        data_path.main(arguments)


def test_the_gain_of_concurrent_jobs_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "NUM_ROUNDS", 1)
    monkeypatch.setattr(sharing, "SECONDS", 0.2)
    sharing.main(SimpleNamespace(settings=SETTINGS, output=tmp_path / "sharing.csv"))
    rows = read_by_name(tmp_path / "sharing.csv")
    for number in (2, 3):
        rates = [rows[f"jobs_{n}_images_per_second"].value for n in (number, 1)]
        assert rows[f"jobs_{number}_gain"].value == pytest.approx(rates[0] / rates[1], rel=0.01)
