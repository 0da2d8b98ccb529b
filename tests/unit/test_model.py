"""Models by name, errors for unusable ones, and weights to start from."""

import pytest
import torch

from optstate.experiment import check as checking
from optstate.experiment.check import REFUSED, check, list_state_entries
from optstate.job import InputError
from optstate.training.model import load_weights, make_model, require_runs
from optstate.training.schedule import make_optimizer

CONFIG = {
    "model": "resnet18",
    "image_size": 32,
    "optimizer": {"name": "Adam"},
    "schedules": {"constant": {"kind": "constant", "lr": [1e-3, 1e-3]}},
    "boundaries": {"new": {"keep": []}, "part": {"keep": ["exp_avg"]}},
    "methods": ["constant-new", "constant-part"],
}

OPTIMIZERS = [
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 224),
        ("googlenet", 64),  # auxiliary heads
        ("inception_v3", 96),
        ("vit_b_16", 64),  # a fixed input size
        ("maxvit_t", 224),
        ("squeezenet1_0", 64),  # a head that is a convolution
        ("regnet_y_400mf", 32),
    ],
)
def test_usable_models_pass(name, size):
    require_runs(name, size, num_classes=7)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 64), ("vit_b_16", 65)])
def test_an_unsuitable_image_size_is_an_error(name, size):
    with pytest.raises(InputError, match=f"model: {name} .* image_size of {size} "):
        require_runs(name, size, num_classes=7)


class TestCheck:
    def test_a_working_configuration_passes(self):
        check(CONFIG)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"model": "resnet51"},
                "model: 'resnet51' is not a torchvision .* Did you mean `resnet50`",
            ),
            (
                {"optimizer": {"name": "Adamm"}},
                "optimizer.name: 'Adamm' is not a class of torch.optim. Did you mean `Adam`",
            ),
            (
                {"optimizer": {"name": "Adam", "beta": 1}},
                "optimizer: .*beta.* does not work .* Correct its keyword arguments",
            ),
            (
                {"optimizer": {"name": "LBFG"}},
                "optimizer.name: 'LBFG' is not a class of torch.optim. Choose one of ASGD, ",
            ),
            (
                {"optimizer": {"name": "Muon"}},  # also where torch has no such class
                "optimizer.name: Muon cannot be used, because it takes only two-dimensional",
            ),
            (
                {"optimizer": {"name": "SGD"}},
                "boundaries.part.keep: 'exp_avg' is not an entry of SGD's state",
            ),
            (
                {"image_size": 1, "model": "vgg11"},
                "model: vgg11 does not work with an image_size of 1 ",
            ),
        ],
    )
    def test_a_configuration_that_does_not_work_is_an_error(self, change, words):
        with pytest.raises(InputError, match=words):
            check(CONFIG | change)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_every_class_of_torch_trains_or_is_refused(self, name, monkeypatch):
        arguments = ("optimizer", {"name": name}, CONFIG["schedules"]["constant"])
        if name in REFUSED:
            reason = f"optimizer.name: {name} cannot be used, because it {REFUSED[name]}. Choose "
            with pytest.raises(InputError, match=f"{reason}one of ASGD, .*, SGD.$") as caught:
                list_state_entries(*arguments)
            offered = str(caught.value).partition("one of ")[2].rstrip(".").split(", ")
            assert {*offered, *REFUSED} >= {*OPTIMIZERS}
            assert not {*offered} & {*REFUSED}
            monkeypatch.setattr(checking, "REFUSED", {})
            with pytest.raises(InputError, match="does not work"):
                list_state_entries(*arguments)
            return
        list_state_entries(*arguments)
        model = checking.make_small_model()
        made = make_optimizer(model.parameters(), {"name": name}, {"kind": "constant", "lr": 0.1})
        before = [parameter.clone() for parameter in model.parameters()]
        checking.compute_loss(model).backward()
        made.step()
        assert not all(map(torch.equal, before, model.parameters()))

    @pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Adafactor"])
    def test_a_state_can_be_rebuilt(self, name):
        boundaries = {"part": {"keep": [], "rebuild_steps": 3}}
        check(CONFIG | {"boundaries": boundaries, "optimizer": {"name": name}})

    def test_an_optimizer_that_changes_weights_without_a_learning_rate_is_refused(self):
        boundaries = {"part": {"keep": [], "rebuild_steps": 3}}
        with pytest.raises(InputError, match="part.rebuild_steps: Rprop changes weights at a lear"):
            check(CONFIG | {"boundaries": boundaries, "optimizer": {"name": "Rprop"}})

    def test_a_schedule_over_the_run_is_checked(self):
        schedule = {"kind": "cosine", "over": "run", "lr": 0.1, "final_lr": 0.0}
        check(CONFIG | {"schedules": {"constant": schedule}})
        broken = schedule | {"optimizer": {"name": "SGX"}}
        with pytest.raises(InputError, match="schedules.constant.optimizer.name: 'SGX'"):
            check(CONFIG | {"schedules": {"constant": broken}})

    def test_the_optimizer_of_a_schedule_is_checked(self):
        schedules = {"constant": CONFIG["schedules"]["constant"] | {"optimizer": {"name": "SGX"}}}
        with pytest.raises(InputError, match="schedules.constant.optimizer.name: 'SGX'"):
            check(CONFIG | {"schedules": schedules})


class TestWeights:
    def load(self, model, path, num_classes=4):
        return load_weights(model, "resnet18", 32, num_classes, path)

    def test_everything_is_loaded_except_a_head_of_another_size(self, tmp_path):
        source, target = make_model("resnet18", 32, 10), make_model("resnet18", 32, 4)
        head = target.fc.weight.clone()
        torch.save(source.state_dict(), tmp_path / "weights.pt")
        assert self.load(target, tmp_path / "weights.pt") == ["fc.bias", "fc.weight"]
        assert torch.equal(target.fc.weight, head)
        assert torch.equal(target.conv1.weight, source.conv1.weight)

    @pytest.mark.parametrize("key", ["model", "state_dict"])
    def test_a_head_of_the_same_size_is_loaded(self, tmp_path, key):
        source, target = make_model("resnet18", 32, 4), make_model("resnet18", 32, 4)
        torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
        assert self.load(target, tmp_path / "weights.pt") == []
        assert torch.equal(target.fc.weight, source.fc.weight)

    def test_weights_of_another_model_are_an_error(self, tmp_path):
        torch.save(make_model("resnet34", 32, 4).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(InputError, match=r"weights.pt: these are not weights of resnet18"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")

    @pytest.mark.parametrize(
        "content", [{1: torch.ones(1)}, {"a": torch.ones(1).to_sparse()}, [1, 2], None]
    )
    def test_a_file_without_weights_is_an_error(self, tmp_path, content):
        torch.save(content, tmp_path / "weights.pt")
        if content is None:
            (tmp_path / "weights.pt").write_bytes(b"hello")
        with pytest.raises(
            InputError, match=r"weights.pt: not a state dict that loads safely. Save it with"
        ):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")

    def test_code_in_a_pickle_does_not_run(self, tmp_path):
        import os

        class Bad:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "pwned"),)

        torch.save({"model": Bad()}, tmp_path / "weights.pt")
        with pytest.raises(InputError, match="loads safely"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")
        assert not (tmp_path / "pwned").exists()
