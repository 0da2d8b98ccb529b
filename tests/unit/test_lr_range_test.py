"""The suggestion and the files of an LR range test, from curves that are made up."""

import csv
import json
import logging
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optstate.checksums import read_checksums, verify
from optstate.experiment import configuration
from optstate.experiment.runs import Session
from optstate.job import InputError
from optstate.lr_range_test import (
    HIGHEST,
    LOWEST,
    NUM_STEPS,
    Curve,
    describe,
    list_configured,
    mark_configured,
    require_uses_lr,
    write_outputs,
)

LRS = np.geomspace(LOWEST, HIGHEST, NUM_STEPS)
ONECYCLE = configuration.session_spec(
    configuration.load({"optimizer": {"name": "SGD", "momentum": 0.9}}),
    Session("imagewoof", "onecycle", 0, 1),
)
CONSTANT = replace(ONECYCLE, schedule="constant", learning_rate={"kind": "constant", "lr": 0.01})


def make_curve(*points: tuple[int, float], noise: float = 0.05, seed: int = 0) -> Curve:
    """Return straight lines between ``points`` (step, loss), with normal noise."""
    losses = np.interp(np.arange(NUM_STEPS), *zip(*points, strict=True))
    return Curve(LRS, losses + np.random.default_rng(seed).normal(0, noise, NUM_STEPS))


DESCENT = make_curve((0, 2.3), (40, 2.3), (60, 1.3), (75, 1.2), (99, 9))
PLATEAU = make_curve((0, 2.3), (75, 2.3), (99, 9))


def test_an_optimizer_that_ignores_the_lr_is_refused():
    require_uses_lr(ONECYCLE)
    with pytest.raises(InputError, match="constant: Rprop uses the LR only in its first step"):
        require_uses_lr(replace(CONSTANT, optimizer={"name": "Rprop"}))


class TestSuggestion:
    @pytest.mark.parametrize("seed", range(20))
    def test_it_lies_where_the_loss_falls(self, seed):
        curve = make_curve((0, 2.3), (40, 2.3), (60, 1.3), (75, 1.3), (99, 9), seed=seed)
        assert 38 <= curve.find_steepest() <= 60

    @pytest.mark.parametrize("seed", range(20))
    def test_there_is_none_on_a_plateau_that_ends_in_divergence(self, seed):
        for noise in (0.05, 0.5):
            curve = make_curve((0, 2.3), (75, 2.3), (99, 9), noise=noise, seed=seed)
            assert curve.find_steepest() is None

    def test_there_is_none_if_the_loss_falls_by_less_than_the_noise(self):
        points = [(0, 2.3), (40, 2.3), (60, 2.0), (80, 2.0), (99, 9)]
        assert make_curve(*points, noise=0.05).find_steepest() is not None
        assert make_curve(*points, noise=0.3).find_steepest() is None

    def test_there_is_none_if_a_loss_without_noise_hardly_falls(self):
        for fall, is_clear in ((0.005, False), (0.1, True)):
            curve = make_curve((0, 2.3), (40, 2.3), (60, 2.3 - fall), (99, 2.3), noise=0)
            assert (curve.find_steepest() is not None) is is_clear

    @pytest.mark.parametrize("loss", [0.0, 2.3])
    def test_there_is_none_if_the_loss_is_constant(self, loss):
        assert make_curve((0, loss), (99, loss), noise=0).find_steepest() is None

    def test_a_descent_after_the_loss_has_risen_does_not_count(self):
        first = [(0, 2.3), (30, 2.3), (50, 2.0), (60, 2.6)]
        assert 28 <= make_curve(*first, (70, 1.0), (99, 9)).find_steepest() <= 50
        without_descent = [(0, 2.3), (50, 2.3), (60, 2.9)]
        assert make_curve(*without_descent, (70, 1.0), (99, 9)).find_steepest() is None

    def test_a_steep_dip_before_the_descent_does_not_count(self):
        points = [(0, 2.0), (10, 2.0), (20, 1.8), (26, 2.1), (90, 1.2), (99, 1.2)]
        noise = np.resize([0.1, -0.1, 0.1, -0.1, 0.1, 0, -0.1, 0.1, -0.1, 0.1, -0.1], NUM_STEPS)
        losses = make_curve(*points, noise=0).losses + noise  # without noise in means of 11 steps
        assert Curve(LRS, losses).find_steepest() >= 26

    def test_a_short_curve_is_enough(self):
        short = Curve(LRS[:20], make_curve((0, 2.3), (19, 0.5), noise=0.01).losses[:20])
        assert 5 <= short.find_steepest() < 15


class TestFiles:
    def write(self, tmp_path, caplog, curve: Curve) -> list[dict]:
        with caplog.at_level(logging.INFO):
            write_outputs(curve, CONSTANT, "abc", tmp_path / "curve.csv")
        with (tmp_path / "curve.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def test_the_suggestion_is_marked(self, tmp_path, caplog):
        rows = self.write(tmp_path, caplog, DESCENT)
        (suggested,) = (row for row in rows if row["suggested"] == "true")
        lr = float(suggested["lr"])
        assert lr == LRS[DESCENT.find_steepest()]
        assert json.loads((tmp_path / "curve.json").read_text()) == {
            "key": "abc", "suggested_lr": lr,
        }  # fmt: skip
        assert f"suggested LR {lr:.2g}; configured: lr 0.01" in caplog.text

    def test_without_a_suggestion_no_step_is_marked(self, tmp_path, caplog):
        rows = self.write(tmp_path, caplog, PLATEAU)
        assert {row["suggested"] for row in rows} == {"false"}
        assert json.loads((tmp_path / "curve.json").read_text())["suggested_lr"] is None
        assert "suggested LR none: the loss does not descend; configured: lr 0.01" in caplog.text

    def test_the_table_has_the_loss_of_each_batch_and_their_means(self, tmp_path, caplog):
        rows = self.write(tmp_path, caplog, DESCENT)
        assert [float(row["loss"]) for row in rows] == list(DESCENT.losses)
        assert float(rows[20]["smoothed_loss"]) == pytest.approx(np.mean(DESCENT.losses[15:26]))
        assert [i for i, row in enumerate(rows) if not row["smoothed_loss"]] == [
            *range(5), *range(95, 100),
        ]  # fmt: skip

    def test_checksums_are_listed(self, tmp_path, caplog):
        self.write(tmp_path, caplog, DESCENT)
        assert sorted(read_checksums(tmp_path)) == ["curve.csv", "curve.json", "curve.png"]
        verify(tmp_path / "curve.png", tmp_path / "curve.csv", tmp_path / "curve.json")


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


class TestFigure:
    @pytest.mark.parametrize(
        ("curve", "words"),
        [(DESCENT, f"{LRS[DESCENT.find_steepest()]:.2g}"),
         (PLATEAU, "none: the loss does not descend")],
    )  # fmt: skip
    def test_the_title_says_what_was_tested_and_what_is_suggested(
        self, tmp_path, monkeypatch, curve, words
    ):
        drawn = []
        monkeypatch.setattr(plt, "close", drawn.append)
        write_outputs(curve, CONSTANT, "abc", tmp_path / "curve.csv")
        monkeypatch.undo()
        (axes,) = drawn[0].axes
        assert axes.get_title("left") == (
            f"imagewoof, constant, SGD(momentum=0.9), before session 1\nsuggested LR {words}"
        )
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "configured: lr 0.01" in labels
        assert (f"suggested: {words}" in labels) is (curve is DESCENT)
        assert axes.get_ylim()[1] < 4  # the losses of the diverged steps are cut off
        plt.close(drawn[0])

    def test_an_optimizer_without_options_has_only_its_name(self):
        assert ", Adam, before" in describe(replace(CONSTANT, optimizer={"name": "Adam"}))

    def test_one_configured_lr_is_a_line(self, axes):
        mark_configured(axes, list_configured(CONSTANT))
        assert [list(line.get_xdata()) for line in axes.lines] == [[0.01, 0.01]]
        assert not axes.patches

    def test_initial_and_largest_lr_are_lines_and_a_span(self, axes):
        spec = replace(ONECYCLE, lr_factor=0.5)
        assert list_configured(spec) == {"initial_lr": 2e-5, "max_lr": 5e-4}
        mark_configured(axes, list_configured(spec))
        assert [line.get_xdata()[0] for line in axes.lines] == [2e-5, 5e-4]
        (span,) = axes.patches
        assert span.get_x() == pytest.approx(2e-5)
        assert span.get_width() == pytest.approx(5e-4 - 2e-5)

    def test_a_final_lr_of_zero_is_not_drawn(self, axes):
        cosine = {"kind": "cosine", "lr": 0.1, "final_lr": 0.0}
        mark_configured(axes, list_configured(replace(CONSTANT, learning_rate=cosine)))
        assert [line.get_xdata()[0] for line in axes.lines] == [0.1]
        assert not axes.patches
