"""YAML is read strictly: nothing is silently taken for something else."""

import pytest

from conftest import ROOT
from optstate.experiment.yaml_files import read_yaml
from optstate.job import InputError


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", ":2: the key 'c' occurs twice. Remove one."),
        ("seeds: [0]\nbatch_size: 3\nseeds: [1]\n", ":3: the key 'seeds' occurs twice."),
        ("a: {{b}}\n", ":1: found unhashable key"),
        ("? [a, b]\n", ":1: found unhashable key"),
        ("seeds: [010]\n", ":1: YAML reads 010 as 8."),
        ("seeds: [-017]\n", ":1: YAML reads -017 as -15."),
        ("image_size: 1:30\n", ":1: YAML reads 1:30 as 90."),
        ("lr: 1:30.5\n", ":1: YAML reads 1:30.5 as 90.5."),
        ("a: &x {b: *x}\n", ":1: an alias refers to its own parent. Write it out."),
        ("a: [\n", ":2: expected the node content"),
        ("a: *b\n", ":1: found undefined alias"),
        ("- a\n", ": must be a mapping of keys to values"),
        ("", ": must be a mapping of keys to values"),
        ("[" * 10_000, ": nested too deeply."),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path, text, error):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(f"{path}{error}")


def test_what_is_not_text_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="mine.yaml: not valid YAML"):
        read_yaml(tmp_path / "mine.yaml")


def test_ordinary_values_are_read_as_by_snakemake(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &x {q: 1, z: 0}\nb: {<<: *x, q: 2}\nc: [0, -3, 1_000, 0x10, 0.5, '010']\n")
    assert read_yaml(path) == {
        "a": {"q": 1, "z": 0}, "b": {"q": 2, "z": 0}, "c": [0, -3, 1000, 16, 0.5, "010"],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_the_projects_own_files_are_strict(name):
    assert read_yaml(ROOT / "config" / name)
