"""Every figure of synthetic runs: nothing is cut off, no texts overlap, and captions are true."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from conftest import ROOT
from optstate import lr_range_test
from optstate.analysis import report, tables
from optstate.analysis.figures import (
    BOUNDARY,
    CURVES,
    boundary,
    curves,
    differences,
    epochs_to_target,
    learning_rate,
    resets,
    style,
)
from optstate.experiment.configuration import load

STEPS_PER_EPOCH = 64  # norms are recorded at the first 50 steps of a session
EPOCHS = (2, 1, 1, 1, 3, 1, 1, 1)  # of each session
TOLERANCE = 1.5  # pixels by which the boxes of two texts may overlap
SHORT = ("preserve", "new", "late", "uninterrupted", "early", "twice", "warmup", "third-of-lr")
LONG = (
    "preserve",
    "reset-everything-at-each-start",
    "lose_the_state_before_the_last",
    "uninterrupted",
    "abcdefghijklmnopqrstuvwxyz-abc",
    "new-optimizer-with-third-of-lr",
    "rebuilt_from_gradients_of_past",
    "warmup-over-the-first-20-steps",
)
TARGETS = {"first": 0.7, "second": 0.42}


class Case(NamedTuple):
    """What the runs of an experiment are like."""

    num_sessions: int = 2
    num_arms: int = 2
    has_long_names: bool = False
    diverged: str = "none"  # "none", "one": one run, "all": all runs
    num_seeds: int = 1
    num_schedules: int = 1

    def name_arms(self) -> tuple[str, ...]:
        return (LONG if self.has_long_names else SHORT)[: self.num_arms]

    def name_schedules(self) -> list[str]:
        suffix = "_schedule_with_a_long_name_x" if self.has_long_names else ""
        return [f"{letter}{suffix}" for letter in "abc"[: self.num_schedules]]

    def name_dataset(self, name: str = "first") -> str:
        return f"{name}-data-set-with-a-long-name"[:30] if self.has_long_names else name


VALUES = [(1, 2, 3, 5), (1, 2, 8), (False, True), ("none", "one", "all"), (1, 2), (1, 3)]
EVERY_VALUE = [VALUES[0], range(1, 9), *VALUES[2:]]


def choose_pairwise(values: list) -> list[Case]:
    """Return few cases such that every two values of two fields occur together in one of them."""

    def list_pairs(case: Case) -> set:
        return set(itertools.combinations(enumerate(case), 2))

    def rate(case: Case, missing: set) -> tuple[int, int]:
        num_curves = case.num_sessions * case.num_arms * case.num_seeds * case.num_schedules
        return len(list_pairs(case) & missing), -num_curves

    cases = [Case(*case) for case in itertools.product(*values)]
    missing = set().union(*map(list_pairs, cases))
    chosen = []
    while missing:
        chosen.append(max(cases, key=lambda case: rate(case, missing)))
        missing -= list_pairs(chosen[-1])
    return chosen


def make_steps(case: Case) -> pd.DataFrame:
    """Return the table of steps: the loss rises after a boundary that loses the state."""
    parts = []
    names = itertools.product(case.name_schedules(), case.name_arms(), range(case.num_seeds))
    for schedule, arm, seed in names:
        kind = SHORT[case.name_arms().index(arm)]
        kind = "preserve" if kind in ("late", "uninterrupted") else kind
        epochs = np.repeat(np.arange(sum(EPOCHS[: case.num_sessions])) + 1, STEPS_PER_EPOCH)
        session = np.searchsorted(np.cumsum(EPOCHS), epochs) + 1
        steps = np.arange(len(epochs)) + 1
        in_session = steps - np.array([steps[session == s].min() for s in session]) + 1
        size = 0.0 if kind == "preserve" else 0.5 + 0.1 * SHORT.index(kind)
        transient = size * (session > 1) * np.exp(-in_session / 20)
        noise = np.random.default_rng(seed).normal(0, 0.1, len(steps))
        loss = np.exp(-steps / 300 + transient + noise)
        is_last = (arm, seed) == (case.name_arms()[-1], case.num_seeds - 1)
        if case.diverged == "all" or (case.diverged == "one" and is_last):
            loss[len(steps) // 2 :] = np.nan
        has_norms = np.isfinite(loss) & ((in_session <= 50) | (in_session % 10 == 0))
        if kind == "uninterrupted":
            session = np.ones_like(session)
        parts.append(
            pd.DataFrame(
                {"dataset": case.name_dataset(), "schedule": schedule, "boundary": arm,
                 "seed": seed, "session": session, "epoch": epochs, "step": steps, "loss": loss,
                 "top1": 1 - np.exp(-steps / 200), "lr": 1e-3 / session, "momentum": 0.9,
                 "grad_norm": np.where(has_norms, 1.0, np.nan),
                 "update_norm": np.where(has_norms, 0.1 * loss + 0.1 * transient, np.nan)}
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def make_epochs(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the table of epochs: the last step of each epoch, for validation."""
    return steps[steps["step"] % STEPS_PER_EPOCH == 0].assign(split="valid")


def make_summary(case: Case) -> pd.DataFrame:
    """Return the summaries of the runs on two data sets. None reaches the target on the second."""
    names = itertools.product(
        map(case.name_dataset, TARGETS), case.name_schedules(), case.name_arms(),
        range(case.num_seeds),
    )  # fmt: skip
    rows = [
        {"dataset": dataset, "schedule": schedule, "boundary": arm, "seed": seed,
         "final_valid_balanced_top1": 0.7 - 0.01 * case.name_arms().index(arm) * (1 + seed),
         "final_valid_loss": np.nan if case.diverged == "all" else 0.5 + 0.1 * seed,
         "epochs_to_target": np.inf if dataset == case.name_dataset("second") else 3.0 + seed}
        for dataset, schedule, arm, seed in names
    ]  # fmt: skip
    summary = pd.DataFrame(rows)
    if case.diverged != "none":
        lost = summary["seed"].eq(case.num_seeds - 1) & summary["boundary"].eq(case.name_arms()[-1])
        lost |= case.diverged == "all"
        summary.loc[lost, "epochs_to_target"] = np.inf
        summary.loc[lost, "final_valid_loss"] = np.nan
    return summary


def make_comparisons(case: Case, measure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the comparisons of all boundaries with their baselines, and their pairs."""
    runs = make_summary(case)
    baseline, *others = reversed(case.name_arms()[:2])
    arms = [*others, *case.name_arms()[2:]]
    of_baseline = runs[runs["boundary"] == baseline]
    names = ["dataset", "schedule", "seed", measure]
    pairs = runs[runs["boundary"].isin(arms)].merge(of_baseline[names], on=names[:-1])
    pairs["difference"] = pairs[f"{measure}_x"] - pairs[f"{measure}_y"]
    pairs["baseline"] = baseline
    found = pairs.groupby(["dataset", "schedule", "boundary", "baseline"])["difference"]
    found = found.agg(mean_difference="mean", n="count", scatter="std").reset_index()
    low, high = (found["mean_difference"] + sign * found["scatter"] for sign in (-2, 2))
    is_primary = found["boundary"] == case.name_arms()[0]
    margin = 0.01 if tables.get_measure(measure).is_top1 else np.nan
    return found.assign(low=low, high=high, primary=is_primary, margin=margin), pairs


def draw_all(case: Case) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the figure of every kind of figure that an experiment would have."""
    steps, summary = make_steps(case), make_summary(case)
    dataset, arms = case.name_dataset(), case.name_arms()
    of_curves = curves.stack_curves(steps, make_epochs(steps))
    yield "valid_loss", curves.draw_curves(of_curves, ["valid_loss"], dataset)
    yield "overview", curves.draw_curves(of_curves, list(CURVES), dataset, arms[-1])
    if arms != ("uninterrupted",):
        around = boundary.select_steps(steps, 1 if case.num_sessions == 1 else 2)
        for name, (column, label) in BOUNDARY.items():
            yield name, boundary.draw_boundaries(around, column, label, dataset)
    measure = "final_valid_balanced_top1" if case.num_seeds > 1 else "final_valid_loss"
    made = make_comparisons(case, measure)
    yield "differences", differences.draw_differences(*made, dataset, measure)
    losses = {
        arm: list(range(2, 2 + index % case.num_sessions)) if index else []
        for index, arm in enumerate(arms) if arm != "uninterrupted"
    }  # fmt: skip
    losses = {arm: sessions for arm, sessions in losses.items() if sessions or arm == arms[0]}
    if len(losses) > 2:
        of_dataset = summary[summary["dataset"] == dataset]
        yield "resets", resets.draw_resets(of_dataset, losses, measure)
    targets = {case.name_dataset(name): target for name, target in TARGETS.items()}
    yield "epochs_to_target", epochs_to_target.draw_epochs_to_target(summary, targets)
    yield "learning_rate", learning_rate.draw_learning_rates(steps)


def list_texts(figure: Figure) -> list[Text]:
    """Return the texts that are drawn. Ticks outside an axis have texts that are not."""
    hidden = set()
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        margin = 1e-6 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - margin <= tick.get_loc() <= high + margin:
                hidden |= {tick.label1, tick.label2}
    return [
        text for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]  # fmt: skip


def find_overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts whose boxes overlap, in a figure that was drawn."""
    texts = [(text.get_text(), text.get_window_extent()) for text in list_texts(figure)]
    return [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(texts, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > TOLERANCE
        and min(a.y1, b.y1) - max(a.y0, b.y0) > TOLERANCE
    ]


def has_clean_border(figure: Figure) -> bool:
    """Return whether the outermost pixels of a figure that was drawn are all background."""
    pixels = np.asarray(figure.canvas.buffer_rgba())
    border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    return all((edge == 255).all() for edge in border)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def check_figures(case: Case) -> None:
    for name, figure in draw_all(case):
        figure.canvas.draw()
        assert has_clean_border(figure), (name, case)
        assert find_overlaps(figure) == [], (name, case)
        plt.close(figure)


@pytest.mark.parametrize("case", choose_pairwise(VALUES), ids=lambda case: "-".join(map(str, case)))
def test_nothing_is_cut_off_and_no_texts_overlap(case):
    check_figures(case)


@pytest.mark.exhaustive  # an hour
def test_every_case():
    for case in itertools.product(*EVERY_VALUE):
        check_figures(Case(*case))


def find_lines(axes: Axes, boundary: str, boundaries: Iterable[str]) -> list[Line2D]:
    """Return the lines and points of a boundary in the order in which they were drawn."""
    colour = style.get_look(boundary, boundaries)["color"]
    return [line for line in axes.lines if line.get_color() == colour]


def draw_boundary_figure(case: Case, column: str, steps: pd.DataFrame | None = None) -> Figure:
    around = boundary.select_steps(make_steps(case) if steps is None else steps, 2)
    return boundary.draw_boundaries(around, column, column, "first")


def test_of_many_boundaries_the_first_and_the_last_three_are_drawn():
    figure = draw_boundary_figure(Case(num_sessions=8), "loss")
    titles = [axes.get_title("left") for axes in figure.axes]
    expected = ["1 to 2", "2 to 3", "3 to 4", "5 to 6", "6 to 7", "7 to 8"]
    assert titles == [f"a: session {numbers}" for numbers in expected]


def list_notes(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if not text.get_text().startswith("session")]


class TestCoincidingMethods:
    def test_a_note_names_them(self):
        (axes,) = draw_boundary_figure(Case(num_arms=3), "loss").axes
        assert list_notes(axes) == ["late and preserve coincide"]

    def test_a_difference_in_one_step_of_one_seed_is_no_coincidence(self):
        steps = make_steps(Case(num_arms=3, num_seeds=2))
        steps.loc[steps.query("boundary == 'late' and seed == 1").index[-1], "loss"] += 1e-9
        (axes,) = draw_boundary_figure(Case(), "loss", steps).axes
        assert list_notes(axes) == []

    def test_diverged_methods_may_coincide(self):
        (axes,) = draw_boundary_figure(Case(num_arms=3, diverged="all"), "loss").axes
        assert list_notes(axes) == ["all methods coincide"]

    def test_an_uninterrupted_run_has_the_name_of_the_legend(self):
        steps = make_steps(Case(num_arms=4))
        of_curves = curves.stack_curves(steps, make_epochs(steps))
        (axes,) = curves.draw_curves(of_curves, ["valid_loss"], "first").axes
        assert list_notes(axes) == ["late, preserve and uninterrupted coincide"]

    def test_learning_rates_are_noted(self):
        steps = make_steps(Case(num_arms=3))
        steps.loc[steps["boundary"] == "late", "lr"] /= 2
        figure = learning_rate.draw_learning_rates(steps)
        notes = [list_notes(axes) for axes in figure.axes]
        assert notes == [["new and preserve coincide"], ["all methods coincide"]]

    def test_the_lower_line_shows_through_the_gaps_of_the_upper_one(self):
        names = ["late", "new", "preserve", "uninterrupted"]
        assert style.sort_for_drawing(names, names)[0] == "preserve"  # a solid line
        assert style.sort_for_drawing(names, names)[-1] == "uninterrupted"  # mostly gaps
        (axes,) = draw_boundary_figure(Case(), "loss").axes
        styles = [line.get_linestyle() for line in axes.lines]
        assert styles.index("-") < styles.index("--")

    def test_equal_points_have_different_sizes(self):
        (axes,) = draw_boundary_figure(Case(num_arms=3), "update_norm").axes
        sizes = [line.get_markersize() for line in axes.lines if line.get_marker() == "."]
        assert sizes == sorted(set(sizes), reverse=True)
        assert len(sizes) == 3


class TestNorms:
    def test_only_steps_recorded_one_after_the_other_are_connected(self):
        (axes,) = draw_boundary_figure(Case(), "update_norm").axes
        *connected, points = find_lines(axes, "new", ["new"])
        assert points.get_marker() == "."
        assert points.get_linestyle() == "None"
        assert points.get_xdata().tolist() == [-48, -38, -28, -18, -8, 60]
        assert [line.get_xdata().tolist() for line in connected] == [list(range(1, 51))]

    def test_norms_on_both_sides_of_a_boundary_are_not_connected(self):
        stretches = boundary.split_steps(np.array([-2, -1, 0, 1, 2, 10]))
        assert [stretch.tolist() for stretch in stretches] == [[0, 1, 2], [3, 4], [5]]

    def test_norms_at_every_step_are_connected(self):
        steps = make_steps(Case()).assign(grad_norm=1.0, update_norm=1.0)
        (axes,) = draw_boundary_figure(Case(), "update_norm", steps).axes
        before, after = find_lines(axes, "new", ["new"])
        assert [len(before.get_xdata()), len(after.get_xdata())] == [50, 64]

    def test_the_end_of_a_single_diverged_run_is_marked(self):
        (axes,) = draw_boundary_figure(Case(diverged="all"), "update_norm").axes
        crosses = [line for line in axes.lines if line.get_marker() == "x"]
        assert [line.get_xdata().tolist() for line in crosses] == [[-38], [-38]]


def test_a_single_seed_is_drawn_like_a_mean():
    for column in ("loss", "update_norm"):
        (axes,) = draw_boundary_figure(Case(), column).axes
        for name in ("new", "preserve"):
            drawn = find_lines(axes, name, ["new", "preserve"])
            lines = [line for line in drawn if line.get_marker() != "."]
            assert {line.get_linewidth() for line in lines} == {style.MEAN["linewidth"]}
            assert {line.get_alpha() for line in lines} == {None}


def test_a_boundary_has_the_look_of_the_legend_in_every_panel():
    steps = make_steps(Case(num_arms=5, num_schedules=3))
    steps = steps[(steps["schedule"] == "a") | ~steps["boundary"].isin(["early"])]
    of_curves = curves.stack_curves(steps, make_epochs(steps))
    for figure in (
        curves.draw_curves(of_curves, ["valid_loss"], "first"),
        draw_boundary_figure(Case(), "loss", steps),
    ):
        for axes in figure.axes:
            assert find_lines(axes, "late", SHORT[:5])


@pytest.mark.parametrize("number", [5, 8, 20])
def test_many_boundaries_have_different_looks(number):
    names = [f"boundary-{index}" for index in range(number)]
    assert len({str(style.get_look(name, names)) for name in names}) == number


def test_diverged_runs_do_not_shorten_the_x_axis():
    case = Case(diverged="all")
    steps = make_steps(case)
    of_curves = curves.stack_curves(steps, make_epochs(steps))
    (axes,) = curves.draw_curves(of_curves, ["valid_loss"], "first").axes
    assert axes.get_xlim()[1] > 3
    for column in BOUNDARY.values():
        (axes,) = draw_boundary_figure(case, column[0]).axes
        assert axes.get_xlim()[1] >= STEPS_PER_EPOCH


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ([10, 20], ["session 1", "session 2"]),
        ([10, 11, 20], ["session 1", "2", "3"]),
        ([50, 51, 51.1, 51.2, 100], ["session 1", "2", "5"]),
    ],
)
def test_numbers_of_sessions_have_space(ends, labels):
    figure, ((axes,),) = style.make_grid(1, 1, 3)
    points = pd.DataFrame({"x": ends, "session": range(1, len(ends) + 1), "boundary": "new"})
    axes.set_xlim(0, 1.03 * ends[-1])
    style.mark_sessions(axes, points)
    figure.canvas.draw()
    assert [text.get_text() for text in axes.texts] == labels
    assert find_overlaps(figure) == []
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert len(dotted) == len(ends) - 1


class TestDifferences:
    def draw(self, measure: str, case: Case | None = None, rows: int | None = None) -> Figure:
        comparisons, pairs = make_comparisons(case or Case(num_arms=3, num_seeds=2), measure)
        return differences.draw_differences(comparisons[:rows], pairs, "first", measure)

    @pytest.mark.parametrize(
        ("measure", "titles"),
        [
            (
                "final_valid_balanced_top1",
                ["← new better · preserve better →", "← new better · late better → (exploratory)"],
            ),
            (
                "final_valid_loss",
                ["← preserve better · new better →", "← late better · new better → (exploratory)"],
            ),
        ],
    )
    def test_titles_name_the_better_side_and_the_primary_outcome_is_first(self, measure, titles):
        assert [axes.get_title("left") for axes in self.draw(measure).axes] == titles

    def test_a_mean_better_than_the_baseline_is_on_the_side_that_says_so(self):
        axes = self.draw("final_valid_balanced_top1").axes[0]
        (mean,) = [line for line in axes.lines if line.get_marker() == "D"]
        assert mean.get_xdata() > 0  # `preserve` has the higher top-1
        assert axes.get_title("left").endswith("preserve better →")

    @pytest.mark.parametrize(("num_seeds", "label"), [(1, "mean"), (2, "mean, t interval")])
    def test_the_legend_has_an_interval_if_there_is_one(self, num_seeds, label):
        figure = self.draw("final_valid_loss", Case(num_seeds=num_seeds))
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["a pair", label]

    def test_the_margin_is_drawn_around_zero_in_points(self):
        axes = self.draw("final_valid_balanced_top1").axes[0]
        (margin,) = axes.patches
        assert (margin.get_x(), margin.get_width()) == pytest.approx((-1, 2))
        assert margin.get_y() < 0 < margin.get_y() + margin.get_height()
        assert self.draw("final_valid_loss").axes[0].patches[:] == []

    @pytest.mark.parametrize(
        ("margins", "label"),
        [([0.01, 0.01], "margin of equivalence, ±1 point"), ([0.01, 0.02], "margin of equivalence"),
         ([np.nan, 0.02], "margin of equivalence, ±2 points"), ([np.nan, np.nan], None)],
    )  # fmt: skip
    def test_the_legend_names_a_margin_that_all_rows_have(self, margins, label):
        comparisons = pd.DataFrame({"margin": margins, "low": 0.0, "high": 0.0})
        _, _, *others = differences.make_handles(comparisons)
        assert [handle.get_label() for handle in others] == [label] * (label is not None)

    def test_all_data_sets_have_one_scale(self):
        measure = "final_valid_balanced_top1"
        comparisons, pairs = make_comparisons(Case(num_seeds=2), measure)
        comparisons.loc[comparisons["dataset"] == "second", ["low", "high"]] = [-0.3, 0.4]
        figure = differences.draw_differences(comparisons, pairs, "first", measure)
        low, high = figure.axes[0].get_xlim()
        assert -40 < low < -30
        assert 40 < high < 50

    def test_without_a_comparison_the_figure_says_so(self):
        (axes,) = self.draw("final_valid_loss", rows=0).axes
        assert [text.get_text() for text in axes.texts] == ["no pair of methods to compare"]


class TestEpochsToTarget:
    def draw(self, case: Case) -> Figure:
        return epochs_to_target.draw_epochs_to_target(make_summary(case), TARGETS)

    def test_each_panel_names_its_target(self):
        first, second = self.draw(Case()).axes
        assert first.get_title("left") == "first: epochs until the valid top-1 reaches 70 %"
        assert second.get_title("left") == "second: epochs until the valid top-1 reaches 42 %"

    def test_a_panel_says_if_no_run_reached_the_target(self):
        first, second = self.draw(Case()).axes
        assert [text.get_text() for text in first.texts] == []
        assert [text.get_text() for text in second.texts] == ["no run reached 42 %"]
        assert list(second.lines) == []

    def test_without_any_run_that_reached_a_target_there_is_no_axis(self):
        figure = self.draw(Case(diverged="all"))
        sentences = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert sentences == ["no run reached 70 %", "no run reached 42 %"]
        assert figure.axes[-1].get_xticks().tolist() == []

    def test_the_median_of_a_run_that_reached_it_and_one_that_did_not_is_infinite(self):
        axes = self.draw(Case(num_arms=2, num_seeds=2, diverged="one")).axes[0]
        medians = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
        assert sorted(medians) == [3.5, 5]  # of epochs 3 and 4, and of 3 and never

    def test_the_axis_has_whole_epochs_from_zero(self):
        axes = self.draw(Case()).axes[0]
        assert axes.get_xlim() == (0, 3.5)
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_a_hidden_overlap_and_ink_at_the_border_are_found():
    figure = plt.figure(figsize=(3, 2))
    figure.text(0.5, 0.5, "a text")
    figure.canvas.draw()
    assert has_clean_border(figure)
    assert find_overlaps(figure) == []
    figure.text(0.51, 0.5, "another text")
    figure.text(0.95, 0.1, "a long text")
    figure.canvas.draw()
    assert not has_clean_border(figure)
    assert find_overlaps(figure) == [("a text", "another text")]


CAPTIONS = sorted(path.stem for path in (ROOT / "workflow/report").glob("*.rst"))
OF_FIGURES = [name for name in CAPTIONS if name not in ("tables", "workflow")]
SGD = {"optimizer": {"name": "SGD"}}


def render_caption(name: str, **config: object) -> str:
    """Return the text of a caption without the tags of HTML."""
    path = ROOT / f"workflow/report/{name}.rst"
    page = report.render_text(path, load() | config)
    return " ".join(re.sub("<[^>]*>", "", page).split())


class TestCaptions:
    @pytest.mark.parametrize("name", OF_FIGURES)
    @pytest.mark.parametrize(
        "config",
        [
            {},
            SGD,
            {"seeds": [0, 1], "validate_every": 2, "sessions": [1]},
            {"primary": {"measure": "final_valid_loss", "boundary": "preserve"}},
            {"boundaries": {"new": {"keep": []}, "again": {"keep": [], "reshuffle": True}}},
        ],
    )
    def test_it_says_first_what_to_look_at(self, name, config):
        text = render_caption(name, **config)
        assert text.split()[0] in ("Look", "Compare", "Check")
        assert text.endswith(".")
        assert not re.search(r"\s[.,;]|\.\w", text)
        assert "System Message" not in text

    @pytest.mark.parametrize("name", OF_FIGURES)
    def test_it_is_the_same_for_every_optimizer(self, name):
        assert render_caption(name) == render_caption(name, **SGD)

    @pytest.mark.parametrize("name", OF_FIGURES)
    def test_it_has_no_numbers_written_by_hand(self, name):
        text = (ROOT / f"workflow/report/{name}.rst").read_text()
        text = re.sub(r"{%.*?%}|{{.*?}}", "", text, flags=re.DOTALL)
        text = re.sub(r"[Tt]op-1|L2 norm|95 % t interval|[Ss]ession 1 ", "", text)
        numbers = re.findall(r"\d[\de.-]*", text)
        of_code = [lr_range_test.NUM_STEPS, lr_range_test.LOWEST, lr_range_test.HIGHEST]
        of_code += [lr_range_test.WINDOW, 100 * lr_range_test.MIN_CHANGE]
        assert [float(n.rstrip(".")) for n in numbers] == of_code * (name == "lr_range_test")

    @pytest.mark.parametrize("name", ["differences", "resets"])
    def test_a_single_seed_has_no_interval(self, name):
        assert "bar" not in render_caption(name, seeds=[0])
        assert re.search("the bar its( 95 %)? t interval", render_caption(name, seeds=[0, 1]))

    def test_resets_name_the_session_of_the_outcome(self):
        primary = {"measure": "end_valid_top1_session2", "boundary": "preserve"}
        text = render_caption("resets", primary=primary)
        assert "in the primary outcome, end valid top-1 of session 2. The label" in text

    @pytest.mark.parametrize("measures", [["top1"], ["loss"], ["loss", "balanced_top1"]])
    def test_equivalence_is_for_accuracies(self, measures):
        primary = [{"measure": f"final_valid_{m}", "boundary": "preserve"} for m in measures]
        text = render_caption("differences", primary=primary, seeds=[0, 1])
        assert ("equivalent" in text) is (measures != ["loss"])
        if len(primary) == 1:
            assert render_caption("differences", primary=primary[0], seeds=[0, 1]) == text

    @pytest.mark.parametrize("deterministic", [True, False, "auto"])
    def test_rounding_may_cause_differences_unless_it_is_excluded(self, deterministic):
        text = render_caption("boundary_loss", deterministic=deterministic)
        assert ("by rounding" in text) is (deterministic is not True)
