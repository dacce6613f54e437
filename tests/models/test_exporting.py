"""Export from torch: the same numbers at any size, plain operators, readable names, nothing about the machine."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from onnxopt.models import exporting, train_byte_gpt  # noqa: E402
from onnxopt.models.train_byte_gpt import ByteGPT  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    # torch's exporter warns about itself.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

Exported = tuple[ByteGPT, Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    model = ByteGPT(width=32, heads=2, layers=2)
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    train_byte_gpt.export(model, path)
    return model, path


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 512)])
def test_gpt_gives_torchs_numbers_at_any_size(exported: Exported, shape: tuple[int, int]) -> None:
    model, path = exported
    tokens = torch.randint(256, shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens).numpy()
    np.testing.assert_allclose(ort.InferenceSession(path).run(None, {"tokens": tokens.numpy()})[0], expected, atol=1e-4)


def test_gpt_is_causal(exported: Exported) -> None:
    session = ort.InferenceSession(exported[1])
    tokens = np.arange(40).reshape(1, 40)
    whole, part = (session.run(None, {"tokens": tokens[:, :length]})[0] for length in (40, 15))
    np.testing.assert_allclose(whole[:, :15], part, atol=1e-4)


def test_gpt_is_made_of_plain_operators(exported: Exported) -> None:
    model = onnx.load(exported[1])
    operators = Counter(node.op_type for node in model.graph.node)
    assert not operators.keys() & {"If", "Loop", "Identity", "Constant", "Attention"}
    assert not model.functions
    assert operators["Softmax"] == 2
    assert operators["MatMul"] == 2 * (4 + 2) + 1
    assert model.opset_import[0].version >= 18


def test_names_are_those_of_modules_and_parameters(exported: Exported) -> None:
    model, path = exported
    graph = onnx.load(path).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, parameter in model.named_parameters():
        if "norm" not in name:  # untrained, they are all alike
            stored, array = weights[name], parameter.detach().numpy()
            assert np.array_equal(stored, array) or np.array_equal(stored, array.T)
    names = [node.name for node in graph.node]
    assert "blocks.1.attention.qkv/MatMul" in names
    assert len(set(names)) == len(names)


def test_nothing_is_said_about_the_machine(exported: Exported) -> None:
    content = exported[1].read_bytes()
    assert not [place for place in (b"/root", b"/home", b".py", b"site-packages", b"stack_trace") if place in content]


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 6)


def test_a_dimension_that_turns_out_fixed_is_an_error(tmp_path: Path) -> None:
    example = {"x": torch.zeros(2, 6)}
    with pytest.raises(torch.onnx.OnnxExporterError):
        exporting.export(Fixed(), example, tmp_path / "fixed.onnx", outputs=["y"], dynamic={"x": {0: "batch"}})
    assert not (tmp_path / "fixed.onnx").exists()


def test_batch_normalization_stays_and_equal_weights_stay_apart(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 20, 1, bias=False), nn.BatchNorm2d(20), nn.Conv2d(20, 20, 1), nn.BatchNorm2d(20)
    )
    path = tmp_path / "normed.onnx"
    exporting.export(module, {"x": torch.zeros(2, 3, 4, 4)}, path, outputs=["y"], dynamic={"x": {0: "batch"}})
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node] == ["Conv", "BatchNormalization"] * 2
    assert [len(node.input) for node in graph.node] == [2, 5, 3, 5]
    read = [name for node in graph.node for name in node.input[1:]]
    assert len(read) == len(set(read))
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    np.testing.assert_allclose(ort.InferenceSession(path).run(None, {"x": x.numpy()})[0], expected, atol=1e-5)
