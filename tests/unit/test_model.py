"""Models by name and of one's own, and errors for unusable ones."""

import os

import pytest
import torch

from optstate.experiment import check as checking
from optstate.experiment.check import REFUSED, check, list_state_entries
from optstate.job import InputError
from optstate.training.model import make_model, move_channels_last, require_runs
from optstate.training.schedule import make_optimizer

OWN_MODEL = """
from torch import nn


def make(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size * image_size, num_classes))
"""
CONFIG = {
    "model": "resnet18",
    "weights": None,
    "optimizer_state": None,
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
            ({"optimizer": {"name": "Adamw"}}, "Did you mean `AdamW`"),
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


class TestOwnModel:
    def make(self, tmp_path, text, function="make"):
        (tmp_path / "net.py").write_text(text)
        return make_model(f"{tmp_path}/net.py:{function}", 16, 3)

    def test_a_function_makes_the_model_for_classes_and_image_size(self, tmp_path):
        model = self.make(tmp_path, OWN_MODEL)
        assert model[1].weight.shape == (3, 3 * 16 * 16)
        require_runs(f"{tmp_path}/net.py:make", 16, 3)
        assert [path.name for path in tmp_path.iterdir()] == ["net.py"]  # and no bytecode

    def test_the_current_content_counts(self, tmp_path):
        self.make(tmp_path, OWN_MODEL)
        before = (tmp_path / "net.py").stat()
        (tmp_path / "net.py").write_text(OWN_MODEL.replace("Flatten", "Sigmoid"))
        os.utime(tmp_path / "net.py", ns=(before.st_atime_ns, before.st_mtime_ns))
        model = make_model(f"{tmp_path}/net.py:make", 16, 3)
        assert type(model[0]).__name__ == "Sigmoid"

    def test_a_dataclass_in_the_file_works(self, tmp_path):
        text = f"from __future__ import annotations\nimport dataclasses\n{OWN_MODEL}"
        text += "@dataclasses.dataclass\nclass Options:\n    width: int = 3\n"
        self.make(tmp_path, text)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("def make(:\n", r"net.py:1: SyntaxError: .*Correct the file"),
            ("\nx = 1 / 0\n", r"net.py:2: ZeroDivisionError: division by zero"),
            (
                "def make(num_classes, image_size):\n    return undefined\n",
                r"net.py:2: NameError: name 'undefined'",
            ),
            ("def make():\n    pass\n", r"net.py: TypeError: .*num_classes"),
            ("def other():\n    pass\n", r"net.py has no function 'make'"),
            ("def make(**_):\n    return 3\n", r"make in .*net.py returns int. Return a torch"),
            ("\nimport missing.part\n", r"net.py:2: needs the package missing, .*pip install miss"),
            ("import helper\n", r"net.py:1: imports helper from its own folder, .*Move that code"),
        ],
    )
    def test_a_mistake_is_one_line_with_its_line_number(self, tmp_path, text, error):
        (tmp_path / "helper.py").touch()
        with pytest.raises(InputError, match=f"^model: .*{error}"):
            self.make(tmp_path, text)

    def test_a_mistake_while_it_runs_has_its_line_number(self, tmp_path):
        body = "\n    def forward(self, images):\n        return images + missing\n"
        text = f"from torch import nn\nclass Net(nn.Module):{body}\ndef make(**_): return Net()\n"
        (tmp_path / "net.py").write_text(text)
        error = r"^model: for an image_size of 16: .*net.py:4: NameError: name 'missing'"
        with pytest.raises(InputError, match=error):
            require_runs(f"{tmp_path}/net.py:make", 16, 3)

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ("x = self.conv(x); return x.view(len(x), -1)[:, :3]", "view size .*reshape"),
            ("x = self.conv(x).mean((2, 3)); return x if self.training else (x,)", "returns tuple"),
            ("self.ema.add_(1); return self.conv(x).mean((2, 3))", "its buffer ema changes in tra"),
            ("return self.conv(x).mean((2, 3)).squeeze()", r"returns \(3,\) for 1 image and 3"),
            ("x = self.conv(x); y = x.sigmoid(); x = y * y; y.add_(1); return x.mean((2, 3))",
             "modified by an inplace operation"),
        ],
    )  # fmt: skip
    def test_a_model_that_would_fail_later_is_an_error(self, tmp_path, body, error):
        (tmp_path / "net.py").write_text(
            "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        self.conv = nn.Conv2d(3, 3, 3)\n"
            "        self.register_buffer('ema', torch.zeros(1), persistent=False)\n\n"
            f"    def forward(self, x):\n        {body}\n\n\ndef make(**_):\n    return Net()\n"
        )
        with pytest.raises(InputError, match=error):
            require_runs(f"{tmp_path}/net.py:make", 16, 3)

    @pytest.mark.parametrize(
        ("old", "new", "error"),
        [
            ("self.grid = None", "self.register_buffer('grid', None)", "a new model .*grid"),
            ("pass", "def get_extra_state(self): return object()\n    set_extra_state = print",
             "a new model .*Weights only load failed"),
            ("return Net()", "torch.manual_seed(1); return Net()", "sets torch's seed"),
        ],
    )  # fmt: skip
    def test_a_model_that_sessions_cannot_repeat_is_an_error(self, tmp_path, old, new, error):
        text = (
            "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    pass\n\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        self.conv = nn.Conv2d(3, 3, 3)\n        self.grid = None\n\n"
            "    def forward(self, x):\n        self.grid = torch.zeros(2)\n"
            "        return self.conv(x).mean((2, 3))\n\n\ndef make(**_):\n    return Net()\n"
        )
        (tmp_path / "net.py").write_text(text)
        require_runs(f"{tmp_path}/net.py:make", 16, 3)
        (tmp_path / "net.py").write_text(text.replace(old, new))
        with pytest.raises(InputError, match=error):
            require_runs(f"{tmp_path}/net.py:make", 16, 3)

    def test_a_model_that_ignores_the_number_of_classes_is_an_error(self, tmp_path):
        (tmp_path / "net.py").write_text(OWN_MODEL.replace("num_classes)", "10)"))
        with pytest.raises(InputError, match=r"returns \(2, 10\) for 2 images and 7 classes"):
            check(CONFIG | {"model": f"{tmp_path}/net.py:make"})

    def test_a_model_may_have_tensors_of_five_dimensions(self, tmp_path):
        conv = "nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 1, 1), nn.Flatten()"
        text = OWN_MODEL.replace("nn.Flatten()", f"nn.Conv2d(3, 3, 1), {conv}")
        model = move_channels_last(self.make(tmp_path, text), "cpu")
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        require_runs(f"{tmp_path}/net.py:make", 16, 3)

    @pytest.mark.parametrize(
        ("old", "new", "error"),
        [
            ("num_classes)", "7)", r"returns \(2, 7\) for 2 images and 3 classes"),
            ("nn.Flatten()", "nn.Identity()", r"returns \(2, 3, 16, 3\) for 2 images"),
        ],
    )
    def test_an_output_of_another_shape_is_an_error(self, tmp_path, old, new, error):
        text = OWN_MODEL.replace(old, new)
        if "Identity" in new:
            text = text.replace("3 * image_size * image_size", "image_size")
        (tmp_path / "net.py").write_text(text)
        with pytest.raises(InputError, match=error):
            require_runs(f"{tmp_path}/net.py:make", 16, 3)
