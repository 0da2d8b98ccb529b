import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import ROOT
from optstate.job import InputError
from optstate.training.model import make_model
from optstate.training.weights import (
    count_classes,
    find_address,
    load_weights,
    read_optimizer_state,
)

TUTORIAL = ROOT / "docs/tutorial.md"


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
        assert count_classes("resnet18", 32, tmp_path / "weights.pt") == 10

    def test_a_body_without_head_has_no_classes(self, tmp_path):
        body = make_model("resnet18", 32, 10).state_dict()
        del body["fc.weight"], body["fc.bias"]
        torch.save(body, tmp_path / "weights.pt")
        assert count_classes("resnet18", 32, tmp_path / "weights.pt") is None

    def test_the_classes_are_counted_wherever_the_head_has_them(self, tmp_path):
        (tmp_path / "net.py").write_text(
            "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
            "    def __init__(self, num_classes):\n        super().__init__()\n"
            "        self.head = nn.Parameter(torch.ones(7, 2 * num_classes + 1))\n\n\n"
            "def make(num_classes, image_size):\n    return Net(num_classes)\n"
        )
        name = f"{tmp_path}/net.py:make"
        torch.save(make_model(name, 32, 10).state_dict(), tmp_path / "weights.pt")
        assert count_classes(name, 32, tmp_path / "weights.pt") == 10

    @pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
    def test_usual_keys_and_prefixes_are_recognized(self, tmp_path, key, prefix):
        source, target = make_model("resnet18", 32, 4), make_model("resnet18", 32, 4)
        state = {prefix + name: value for name, value in source.state_dict().items()}
        content = {key: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(content, tmp_path / "weights.pt")
        assert self.load(target, tmp_path / "weights.pt") == []
        assert torch.equal(target.fc.weight, source.fc.weight)

    def test_entries_beside_the_prefix_are_left_out(self, tmp_path):
        source, target = make_model("resnet18", 32, 4), make_model("resnet18", 32, 4)
        state = {f"model.{name}": value for name, value in source.state_dict().items()}
        torch.save({"state_dict": state | {"loss.weight": torch.ones(4)}}, tmp_path / "weights.pt")
        assert self.load(target, tmp_path / "weights.pt") == []

    def test_a_model_that_cannot_be_copied_is_loaded(self, tmp_path):
        self.assert_loads_own_model(
            tmp_path,
            "import threading\nfrom torch import nn\n\n\n"
            "def make(num_classes, image_size):\n    net = nn.Linear(3, num_classes)\n"
            "    net.lock = threading.Lock()\n    return net\n",
        )

    def test_a_prefix_of_the_model_itself_stays(self, tmp_path):
        self.assert_loads_own_model(
            tmp_path,
            "from torch import nn\n\n\nclass Net(nn.Module):\n"
            "    def __init__(self, num_classes):\n        super().__init__()\n"
            "        self.model = nn.Linear(3, num_classes)\n\n\n"
            "def make(num_classes, image_size):\n    return Net(num_classes)\n",
        )

    def assert_loads_own_model(self, tmp_path, text):
        """Check that a model of the Python file ``text`` gets all weights of another one."""
        (tmp_path / "net.py").write_text(text)
        name = f"{tmp_path}/net.py:make"
        source, target = make_model(name, 8, 2), make_model(name, 8, 2)
        torch.save(source.state_dict(), tmp_path / "weights.pt")
        assert load_weights(target, name, 8, 2, tmp_path / "weights.pt") == []
        pairs = zip(target.parameters(), source.parameters(), strict=True)
        assert all(torch.equal(loaded, given) for loaded, given in pairs)

    def test_weights_of_another_model_are_an_error(self, tmp_path):
        torch.save(make_model("resnet34", 32, 4).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(InputError, match=r"weights.pt: these are not weights of resnet18"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")

    def test_names_that_the_model_does_not_have_are_shown(self, tmp_path):
        state = {f"net.{k}": v for k, v in make_model("resnet18", 32, 4).state_dict().items()}
        torch.save(state, tmp_path / "weights.pt")
        error = "for example 'bn1.bias' of the model and 'net.bn1.bias' of the file. Correct "
        with pytest.raises(InputError, match=error):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")

    def test_safetensors_are_an_error_that_says_how_to_convert_them(self, tmp_path):
        (tmp_path / "weights.safetensors").write_bytes(b"hello")
        with pytest.raises(InputError, match=r"safetensors: this format is not read. Convert it"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.safetensors")

    def test_weights_for_another_image_size_are_an_error_that_names_it(self, tmp_path):
        torch.save(make_model("vit_b_16", 64, 4).state_dict(), tmp_path / "weights.pt")
        error = (
            r"one entry differs, 'encoder.pos_embedding' of shape \(1, 17, 768\) instead of "
            r"\(1, 5, 768\)\. Correct `weights`, `model` or `image_size`"
        )
        with pytest.raises(InputError, match=error):
            load_weights(make_model("vit_b_16", 32, 4), "vit_b_16", 32, 4, tmp_path / "weights.pt")

    @pytest.mark.parametrize("name", ["densenet121", "resnet18", "vit_b_16"])
    def test_files_of_older_versions_are_read(self, tmp_path, name):
        source, target = make_model(name, 32, 10), make_model(name, 32, 4)
        state = source.state_dict()
        for key in list(state):
            older = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)
            older = older.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2")
            if not key.endswith("num_batches_tracked"):
                state[older] = state[key]
            if older != key or key.endswith("num_batches_tracked"):
                del state[key]
        for versions in state._metadata.values():
            versions.pop("version", None)
        torch.save({"state_dict": state}, tmp_path / "weights.pt")
        new = load_weights(target, name, 32, 4, tmp_path / "weights.pt")
        assert len(new) == 2
        expected = source.state_dict()
        for key, value in target.state_dict().items():
            assert key in new or key.endswith("tracked") or torch.equal(value, expected[key])

    def test_the_versions_of_modules_keep_their_names_without_prefix(self, tmp_path):
        source, target = make_model("mnasnet0_5", 32, 4), make_model("mnasnet0_5", 32, 4)
        torch.save(nn.DataParallel(source).state_dict(), tmp_path / "weights.pt")
        assert load_weights(target, "mnasnet0_5", 32, 4, tmp_path / "weights.pt") == []
        torch.save(dict(source.state_dict()), tmp_path / "weights.pt")
        with pytest.raises(InputError, match=r"cannot be loaded \(version should .*Save them with"):
            load_weights(target, "mnasnet0_5", 32, 4, tmp_path / "weights.pt")

    @pytest.mark.parametrize(
        "content", [{1: torch.ones(1)}, {"a": torch.ones(1).to_sparse()}, [1, 2], {}, {"a": 3}]
    )
    def test_a_file_without_weights_is_an_error(self, tmp_path, content):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(InputError, match=r"weights.pt: has no state dict of a model, bare or"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")

    def test_a_file_that_torch_did_not_write_is_an_error(self, tmp_path):
        (tmp_path / "weights.pt").write_bytes(b"hello")
        with pytest.raises(InputError, match=r"weights.pt: does not load safely"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")

    def test_code_in_a_pickle_does_not_run(self, tmp_path):
        import os

        class Bad:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "pwned"),)

        torch.save({"model": Bad()}, tmp_path / "weights.pt")
        with pytest.raises(InputError, match="does not load safely"):
            self.load(make_model("resnet18", 32, 4), tmp_path / "weights.pt")
        assert not (tmp_path / "pwned").exists()

    def test_weights_of_torchvision_have_an_address_with_their_hash(self):
        address = find_address("resnet50", "IMAGENET1K_V2")
        assert address == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
        with pytest.raises(InputError, match="resnet18 has no weights 'IMAGENET1K_V2'. Choose one"):
            find_address("resnet18", "IMAGENET1K_V2")


ADAM = {"name": "Adam"}


class TestOptimizerState:
    def make_net(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def train(self, net: nn.Module, name: str = "Adam", groups: int = 1, **arguments) -> dict:
        """Return the state dict of an optimizer after two steps."""
        parameters = [p for p in net.parameters() if p.requires_grad]
        half = len(parameters) // groups
        lists = [parameters[i : i + half] for i in range(0, len(parameters), half)]
        optimizer = getattr(torch.optim, name)([{"params": p} for p in lists], lr=0.1, **arguments)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(5, 3)).square().sum().backward()
            optimizer.step()
        return optimizer.state_dict()

    def read(self, tmp_path: Path, content, optimizer=ADAM, net=None) -> dict:
        torch.save(content, tmp_path / "mine.pt")
        parameters = (net or self.make_net()).named_parameters()
        return read_optimizer_state(tmp_path / "mine.pt", optimizer, parameters)["state"]

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"optimizer": state, "model": {}},
            lambda state: {"optimizer_state_dict": state, "optimizer": "Adam", "epoch": 3},
            lambda state: {"optimizer_states": [state], "state_dict": {}},
        ],
    )
    @pytest.mark.parametrize("groups", [1, 2])
    def test_a_state_is_found_and_ordered(self, tmp_path, wrap, groups):
        given = self.train(self.make_net(), groups=groups)
        found = self.read(tmp_path, wrap(given))
        assert list(found) == [0, 1, 2, 3]
        for index, entries in found.items():
            assert torch.equal(entries["exp_avg"], given["state"][index]["exp_avg"])

    def test_the_tutorial_orders_the_state_of_several_groups(self, tmp_path, monkeypatch):
        (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my").mkdir()
        model = self.make_net()
        biases = [p for p in model.parameters() if p.ndim == 1]
        weights = [p for p in model.parameters() if p.ndim == 2]
        optimizer = torch.optim.Adam([{"params": biases}, {"params": weights}])
        model(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
        exec(code, {"torch": torch, "model": model, "optimizer": optimizer})  # noqa: S102
        content = torch.load(tmp_path / "my/checkpoint.pt")
        for number, found in self.read(tmp_path, content).items():
            parameter = list(model.parameters())[number]
            assert torch.equal(found["exp_avg"], optimizer.state[parameter]["exp_avg"])

    @pytest.mark.parametrize(
        "optimizer",
        [
            {"name": "SGD", "momentum": 0.9},
            {"name": "Adam", "amsgrad": True},
            {"name": "Adafactor"},
            {"name": "Rprop"},
            {"name": "ASGD"},
        ],
    )
    def test_states_of_other_optimizers_are_read(self, tmp_path, optimizer):
        given = self.train(self.make_net(), **optimizer)
        assert len(self.read(tmp_path, given, optimizer)) == 4

    def test_a_parameter_without_state_has_none(self, tmp_path):
        given = self.train(self.make_net())
        del given["state"][1]
        assert list(self.read(tmp_path, given)) == [0, 2, 3]

    def test_the_fused_sgd_needs_momentum_of_all_parameters(self, tmp_path):
        sgd = {"name": "SGD", "momentum": 0.9}
        given = self.train(self.make_net(), **sgd)
        del given["state"][1]
        self.check_refused(
            tmp_path, given, "no momentum for 0.bias, .* Add `foreach: true`", optimizer=sgd
        )
        net = self.make_net()
        assert list(self.read(tmp_path, given, sgd | {"foreach": True}, net)) == [0, 2, 3]
        self.check_refused(
            tmp_path, given, "no momentum", optimizer=sgd | {"foreach": False, "fused": True}
        )
        net[0].bias.requires_grad = False
        assert list(self.read(tmp_path, given, sgd, net)) == [0, 2, 3]

    def test_parameters_that_are_not_trained_may_be_left_out(self, tmp_path):
        net = self.make_net()
        net[0].requires_grad_(False)
        given = self.train(net)
        state = self.read(tmp_path, given, net=net)
        assert [*state] == [2, 3]
        assert torch.equal(state[2]["exp_avg"], given["state"][0]["exp_avg"])

    def check_refused(self, tmp_path, content, error, **options):
        with pytest.raises(InputError, match=rf"mine.pt: .*{error}"):
            self.read(tmp_path, content, **options)

    def test_a_state_of_another_model_is_an_error(self, tmp_path):
        wide = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
        error = (
            r"parameter 1 of its optimizer does not fit 0.weight \(4, 3\) under Adam: its exp_avg "
            r"has the shape \(5, 3\), not \(4, 3\)\. Correct"
        )
        self.check_refused(tmp_path, self.train(wide), error)
        groups = self.train(wide, groups=2)
        self.check_refused(tmp_path, groups, "It has 2 parameter groups, whose parameters must be")
        deep = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
        self.check_refused(tmp_path, self.train(deep), "has 6 parameters, but the model has 4")

    def test_a_state_of_another_optimizer_is_an_error(self, tmp_path):
        given = self.train(self.make_net())
        error = "under SGD: it has exp_avg, exp_avg_sq, step, not momentum_buffer"
        sgd = {"name": "SGD", "momentum": 0.9}
        self.check_refused(tmp_path, given, error, optimizer=sgd)
        self.check_refused(tmp_path, given, "step, not exp_avg, .*max_exp", optimizer={
            "name": "Adam", "amsgrad": True,
        })  # fmt: skip

    def test_nothing_to_start_from_is_an_error(self, tmp_path):
        given = self.train(self.make_net())
        none = given | {"state": {}}
        self.check_refused(tmp_path, none, "has no state. Save it after a step")
        plain = self.train(self.make_net(), "SGD")
        self.check_refused(tmp_path, plain, "has no state", optimizer={"name": "SGD"})
        self.check_refused(tmp_path, {"model": {}}, "has no optimizer state, bare or under one of")
        two = {"optimizer_states": [given, copy.deepcopy(given)]}
        self.check_refused(tmp_path, two, "has the states of 2 optimizers")
