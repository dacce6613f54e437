"""The collection of architectures that benchmarks export."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def alive() -> ModuleType:
    return importlib.import_module("architectures.alive")


def constant(weight: "torch.Tensor") -> bool:
    return bool((weight == weight.flatten()[0]).all())


def network() -> "torch.nn.Module":
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    )
    net.register_parameter("position", torch.nn.Parameter(torch.zeros(1, 6, 8)))
    net.register_parameter("layer_scale", torch.nn.Parameter(torch.full((8,), 1e-6)))
    torch.nn.init.zeros_(net[3].bias)
    return net


def test_no_constant_parameter_is_left(alive: ModuleType) -> None:
    net = network()
    before = net[0].weight.clone()
    alive.enliven(net, torch.Generator().manual_seed(0))
    assert not [name for name, weight in net.named_parameters() if constant(weight)]
    assert bool((net.layer_scale >= 0.5).all()), "a branch stays silent"
    assert torch.equal(net[0].weight, before), "a weight that was random has changed"


def test_vectors_stay_equal_where_they_are_to_be_shared(alive: ModuleType) -> None:
    net = network()
    alive.enliven(net, torch.Generator().manual_seed(0), matrices_only=True)
    assert constant(net[1].weight)
    assert constant(net[3].bias)
    assert not constant(net.position)


def test_norms_that_start_at_zero_let_their_branch_through(alive: ModuleType) -> None:
    norm = torch.nn.BatchNorm2d(16)
    torch.nn.init.zeros_(norm.weight)
    alive.enliven(norm, torch.Generator().manual_seed(0))
    assert bool((norm.weight >= 0.5).all())


def test_layers_and_tables_have_a_scale_that_shows(alive: ModuleType) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.Linear(50, 40), torch.nn.Embedding(20, 10))
    net.register_parameter("table", torch.nn.Parameter(torch.randn(30, 4)))
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(0.01)
    rows = net[2].weight.clone()
    alive.enliven(net, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float((net[1].weight @ torch.randn(50, 1000)).square().mean()) == pytest.approx(0.25, rel=0.1)
        assert float(net[0].weight.square().sum((1, 2, 3)).mean()) == pytest.approx(0.25, rel=0.01)
        assert float(net.table.square().mean()) == pytest.approx(0.25, rel=0.01)
    assert torch.equal(net[2].weight, rows), "what a norm follows needs no scale"


def test_statistics_are_those_of_the_inputs(alive: ModuleType) -> None:
    net = network().eval()
    images = 40 * torch.randn(16, 3, 12, 12) + 7
    alive.settle(net, (images,))
    with torch.no_grad():
        found = net[0](images)
        scaled = torch.nn.functional.batch_norm(found, net[1].running_mean, net[1].running_var)
    assert (scaled.square().mean((0, 2, 3)) - 1).abs().max() < 1e-4
    torch.testing.assert_close(net[1].running_mean, found.mean((0, 2, 3)) / 4)
    assert not net[1]._forward_pre_hooks


def test_what_is_expected_of_them_is_known_without_torch() -> None:
    code = "from architectures.expected import EXPECTED; assert EXPECTED; assert 'torch' not in sys.modules"
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); {code}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_expectation_belongs_to_a_model() -> None:
    modules = [importlib.import_module(f"architectures.{name}") for name in ("vision", "full_size", "small")]
    names = [name for module in modules for name in module.CASES]
    assert len(names) == len(set(names)), "two models of one name"
    assert set(importlib.import_module("architectures.expected").EXPECTED) <= set(names)


def test_units_of_a_stack_are_counted_over_its_layers() -> None:
    stack = importlib.import_module("architectures.expected").Stack(
        layers=3, heads=8, kv_heads=2, neurons=200, attentions=2
    )
    assert (stack.head_units, stack.neuron_units) == (12, 600)
