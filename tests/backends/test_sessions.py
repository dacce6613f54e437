"""Sessions: what each mode computes, and that all that can go wrong is one line naming the culprit."""

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxopt.backends import diagnosis, sessions
from onnxopt.backends.sessions import SessionMode, open_session, run, session, session_options
from onnxopt.errors import DataError, KernelError, ModelError, OnnxOptError

RUNTIME = f"ONNX Runtime {ort.__version__}"
FLOAT = TensorProto.FLOAT


def relu(**attributes):
    return helper.make_node("Relu", ["x"], ["y"], name="X", **attributes)


def opened(model, mode=SessionMode.REFERENCE):
    return open_session(model.SerializeToString(), mode)


def message(error: pytest.ExceptionInfo[OnnxOptError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "onnxruntime_src" not in text
    assert "[ONNXRuntimeError]" not in text
    return text


# What a mode is


@pytest.mark.parametrize("mode", SessionMode)
def test_modes_compute_the_model(build, mode):
    x = np.array([[-1, 0, 2]], np.float32)
    np.testing.assert_array_equal(run(opened(build([relu()]), mode), {"x": x})["y"], np.maximum(x, 0))


@pytest.mark.parametrize("mode", [SessionMode.REFERENCE, SessionMode.NOISE_ALL, SessionMode.NOISE_NONE])
def test_quantized_weights_are_computed_as_written(build, mode):
    """With QDQ fusion on, ONNX Runtime quantizes the activations too, which costs about 5e-3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    scale = rng.uniform(0.5, 1, (2, 64)).astype(np.float32)
    weight = rng.integers(-8, 8, (64, 64))
    model = build(
        [
            helper.make_node("DequantizeLinear", ["w", "scale"], ["dense"], axis=0, block_size=32),
            helper.make_node("MatMul", ["x", "dense"], ["y"]),
        ],
        [("x", FLOAT, ("N", 64))],
        [("y", FLOAT, ("N", 64))],
        {"w": weight.astype(ml_dtypes.int4), "scale": scale},
    )
    exact = x.astype(np.float64) @ (weight * np.repeat(scale, 32, axis=0))
    y = run(opened(model, mode), {"x": x})["y"]
    assert np.linalg.norm(y - exact) < 1e-5 * np.linalg.norm(exact)


def test_options_of_each_mode():
    levels = ort.GraphOptimizationLevel
    reference = session_options(SessionMode.REFERENCE, threads=3)
    assert reference.graph_optimization_level == levels.ORT_ENABLE_BASIC
    assert reference.use_deterministic_compute
    assert reference.intra_op_num_threads == 3
    assert session_options(SessionMode.NOISE_NONE).graph_optimization_level == levels.ORT_DISABLE_ALL
    assert session_options(SessionMode.NOISE_ALL).graph_optimization_level == levels.ORT_ENABLE_ALL
    deployed = session_options(SessionMode.DEPLOYED, threads=None)
    assert deployed.graph_optimization_level == levels.ORT_ENABLE_ALL
    assert deployed.intra_op_num_threads == 0
    with pytest.raises(RuntimeError):  # the entry is not set
        deployed.get_session_config_entry("session.disable_quant_qdq")


def test_only_deployed_registers_the_library(monkeypatch, tmp_path):
    broken = tmp_path / "library.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(sessions.library, "path", lambda: broken)
    for mode in set(SessionMode) - {SessionMode.DEPLOYED}:
        session_options(mode)
    with pytest.raises(KernelError, match=r"library\.so.*cannot load"):
        session_options(SessionMode.DEPLOYED)


def test_public_session_keeps_the_callers_options(matmul, monkeypatch):
    monkeypatch.setattr(sessions.library, "path", lambda: None)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    made = session(matmul(), options, ["CPUExecutionProvider"])
    assert made.get_session_options().intra_op_num_threads == 1
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert session(str(matmul())).get_inputs()[0].name == "x"


# What does not load


def in_branch(node):
    """A model body with `node` inside the branches of an If."""
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("y", FLOAT, None)])
    return helper.make_node("If", ["c"], ["z"], name="choice", then_branch=branch, else_branch=branch)


UNLOADABLE = {
    "missing library": (
        lambda build: build([relu(domain="com.acme")], domains={"com.acme": 1}),
        f"node 'X' (op Relu, domain com.acme) has no kernel in {RUNTIME}; register its library with ",
    ),
    "missing library, in a subgraph": (
        lambda build: build(
            [in_branch(relu(domain="com.acme"))],
            ["x", ("c", TensorProto.BOOL, ())],
            [("z", FLOAT, None)],
            domains={"com.acme": 1},
        ),
        "node 'X' (op Relu, domain com.acme)",
    ),
    "our own operator without its body": (
        lambda build: build([relu(domain="ai.onnxopt")], domains={"ai.onnxopt": 1}),
        f"node 'X' (op Relu, domain ai.onnxopt) has no kernel in {RUNTIME}: ",
    ),
    "the runtime's own domain": (
        lambda build: build([relu(domain="com.microsoft")], domains={"com.microsoft": 1}),
        "whose own domain this is",
    ),
    "domain not imported": (
        lambda build: build([relu(domain="com.acme")]),
        "node 'X' (op Relu, domain com.acme): the model imports no opset for that domain",
    ),
    "no such op": (
        lambda build: build([helper.make_node("Foo", ["x"], ["y"], name="X")]),
        f"node 'X' (op Foo): opset 21 has no operator of that name in {RUNTIME}",
    ),
    "no name": (
        lambda build: build([helper.make_node("Foo", ["x"], ["y"])]),
        "a node without a name (op Foo): opset 21",
    ),
    "no kernel": (
        lambda build: build([relu()], opset=1, ir=3),
        f"node 'X' (op Relu) has no kernel in {RUNTIME} for its types at version 1 of the operator",
    ),
    "opset too new": (lambda build: build([relu()], opset=99), f"opset 99 of ai.onnx is too new: {RUNTIME} takes at"),
    "IR too new": (lambda build: build([relu()], ir=99), f"IR version 99 is too new: {RUNTIME} takes at most "),
    "unknown attribute": (
        lambda build: build([relu(foo=1)]),
        "invalid graph: node 'X' (op Relu): Unrecognized attribute: foo",
    ),
    "undefined input": (
        lambda build: build([helper.make_node("Relu", ["z"], ["y"], name="X")]),
        "Node input 'z' is not a graph input",
    ),
    "types": (
        lambda build: build([relu()], [("x", TensorProto.STRING, (1,))], [("y", TensorProto.STRING, (1,))]),
        f"{RUNTIME} refuses the model: Type Error: Type 'tensor(string)' of input parameter (x) of operator (Relu)",
    ),
    "shapes": (
        lambda build: build([helper.make_node("Add", ["x", "w"], ["y"], name="X")], weights={"w": np.ones(4, "f4")}),
        "Node (X) Op (Add)",
    ),
    "cycle": (
        lambda build: build(
            [helper.make_node("Add", ["x", "b"], ["y"], name="A"), helper.make_node("Relu", ["y"], ["b"], name="B")]
        ),
        "the graph is not acyclic",
    ),
}


@pytest.mark.parametrize("case", UNLOADABLE)
@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
def test_what_does_not_load_is_told_in_one_line(build, tmp_path, case, as_file):
    make, expected = UNLOADABLE[case]
    source = make(build).SerializeToString()
    path = tmp_path / "a model.onnx"
    path.write_bytes(source)
    with pytest.raises(ModelError) as caught:
        open_session(path if as_file else source, SessionMode.REFERENCE)
    assert expected in message(caught)
    assert message(caught).startswith(f"{path}: ") == as_file


@pytest.mark.parametrize("content", [b"no protobuf at all, but text", b"\x08\x0a\x3a\xff\xff\x01"])
def test_what_is_no_model(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX file, or a truncated one"):
        open_session(path, SessionMode.DEPLOYED)


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        open_session(tmp_path / "nowhere.onnx", SessionMode.DEPLOYED)


@pytest.mark.parametrize(
    ("location", "content", "expected"),
    [
        ("w.bin", None, "the external data of tensor 'w' is missing: "),
        ("w.bin", b"123", "the external data of tensor 'w' is cut short: byte 12 of a file of 3"),
        ("../w.bin", b"0" * 12, "the external data of tensor 'w' lies outside the model's folder: ../w.bin"),
    ],
)
def test_external_data(build, tmp_path, location, content, expected):
    model = build([helper.make_node("Add", ["x", "w"], ["y"])], weights={"w": np.ones(3, np.float32)})
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if content is not None:
        (folder / location).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        open_session(folder / "model.onnx", SessionMode.REFERENCE)
    assert expected in message(caught)


def test_culprit_is_found_at_the_end_of_a_long_chain(build):
    """The search for a node goes over subgraphs and long graphs without recursion."""
    names = ["x", *(f"t{index}" for index in range(20_000))]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    nodes.append(helper.make_node("Foo", [names[-1]], ["y"], name="last", domain="com.acme"))
    with pytest.raises(ModelError, match=r"node 'last' \(op Foo, domain com.acme\)"):
        opened(build(nodes, domains={"com.acme": 1}))


# Feeds


BAD_FEEDS = {
    "missing": ({}, "input 'x' (float32 [N, 3]) is missing; fed were: nothing"),
    "unknown": ({"x": np.ones((2, 3), "f4"), "xx": 1}, "'xx' is no input of the model, which takes 'x'; nearest: 'x'"),
    "dtype": ({"x": np.ones((2, 3))}, "input 'x' takes float32, fed was float64"),
    "size": ({"x": np.ones((2, 4), "f4")}, "input 'x' takes float32 [N, 3], fed was shape [2, 4]"),
    "rank": ({"x": np.ones(3, "f4")}, "input 'x' takes float32 [N, 3], fed was shape [3]"),
    "no array": ({"x": None}, "input 'x' takes float32, fed was object"),
    "text": ({"x": "abc"}, "input 'x' takes float32, fed was str"),
}


@pytest.mark.parametrize("case", BAD_FEEDS)
def test_feeds_that_do_not_fit(build, case):
    feeds, expected = BAD_FEEDS[case]
    with pytest.raises(DataError) as caught:
        run(opened(build([relu()])), feeds)
    assert expected in message(caught)


SIZES = st.integers(0, 3)


@given(
    declared=st.lists(SIZES | st.sampled_from(["N", "M", None]), max_size=3),
    fed=st.lists(SIZES, max_size=3),
)
def test_shapes_are_refused_exactly_where_the_runtime_refuses_them(build, declared, fed):
    identity = helper.make_node("Identity", ["x"], ["y"])
    made = opened(build([identity], [("x", FLOAT, declared)], [("y", FLOAT, None)]))
    value = np.ones(fed, np.float32)
    try:
        made.run(None, {"x": value})
    except Exception:
        with pytest.raises(DataError, match="input 'x' takes"):
            run(made, {"x": value})
    else:
        assert run(made, {"x": value})["y"].shape == tuple(fed)


def test_operator_that_refuses_its_values(build):
    gather = helper.make_node("Gather", ["w", "x"], ["y"], name="lookup")
    model = build([gather], [("x", TensorProto.INT64, ("N",))], [("y", FLOAT, None)], {"w": np.ones((3, 2), "f4")})
    with pytest.raises(DataError) as caught:
        run(opened(model), {"x": np.array([9])})
    assert message(caught).startswith("node 'lookup' (op Gather) failed: indices element out of data bounds, idx=9")


def test_operands_that_do_not_match(build):
    add = helper.make_node("Add", ["x", "z"], ["y"], name="sum")
    model = build([add], [("x", FLOAT, ("N",)), ("z", FLOAT, ("M",))], [("y", FLOAT, None)])
    with pytest.raises(DataError, match=r"node 'sum' \(op Add\) failed: .*3 by 4"):
        run(opened(model), {"x": np.ones(3, "f4"), "z": np.ones(4, "f4")})


def test_no_memory_is_the_models_fault(build):
    fill = helper.make_node("ConstantOfShape", ["x"], ["y"], name="fill")
    model = build([fill], [("x", TensorProto.INT64, ("N",))], [("y", FLOAT, None)])
    with pytest.raises(ModelError) as caught:
        run(opened(model), {"x": np.array([1 << 24, 1 << 24])})
    assert message(caught).startswith(f"node 'fill' (op ConstantOfShape) failed: {RUNTIME} found no memory for ")


# Values other than plain tensors


def test_sequences_pass_through(build):
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    made = opened(build([helper.make_node("SequenceConstruct", ["x", "x"], ["y"])], outputs=[sequence]))
    x = np.ones((1, 3), np.float32)
    first, second = run(made, {"x": x})["y"]
    np.testing.assert_array_equal(first, x)
    np.testing.assert_array_equal(second, x)


def test_sequences_go_in(build):
    node = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    inputs = [helper.make_tensor_sequence_value_info("s", FLOAT, None), ("i", TensorProto.INT64, ())]
    made = opened(build([node], inputs, [("y", FLOAT, None)]))
    feeds = {"s": [np.zeros(2, "f4"), np.ones(1, "f4")], "i": np.array(1)}
    np.testing.assert_array_equal(run(made, feeds)["y"], [1])
    with pytest.raises(DataError):
        run(made, feeds | {"s": np.ones(3, "f4")})


def test_empty_optionals_are_none(build):
    tensor = helper.make_tensor_type_proto(FLOAT, ("N",))
    output = helper.make_value_info("y", helper.make_optional_type_proto(tensor))
    made = opened(build([helper.make_node("Optional", [], ["y"], type=tensor)], [], [output]))
    assert run(made, {}) == {"y": None}


def test_maps_pass_through(build):
    output = onnx.ValueInfoProto(name="y")
    element = output.type.sequence_type.elem_type.map_type
    element.key_type = TensorProto.INT64
    element.value_type.tensor_type.elem_type = FLOAT
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[5, 6, 7])
    made = opened(build([node], outputs=[output], domains={"ai.onnx.ml": 3}))
    assert run(made, {"x": np.array([[1, 2, 3]], "f4")}) == {"y": [{5: 1.0, 6: 2.0, 7: 3.0}]}


@pytest.mark.parametrize("name", ["FLOAT", "BFLOAT16"])
def test_memory_order_of_feeds_does_not_matter(build, name):
    dtype = getattr(TensorProto, name)
    identity = helper.make_node("Identity", ["x"], ["y"])
    made = opened(build([identity], [("x", dtype, (3, 2))], [("y", dtype, (3, 2))]))
    x = np.arange(6).reshape(2, 3).astype(helper.tensor_dtype_to_np_dtype(dtype)).T
    np.testing.assert_array_equal(run(made, {"x": x})["y"].astype("f4"), x.astype("f4"))


def test_strings(build):
    text = TensorProto.STRING
    made = opened(build([helper.make_node("Identity", ["x"], ["y"])], [("x", text, ("N",))], [("y", text, ("N",))]))
    for words in (np.array(["a", "bc"]), np.array(["a", "bc"], object)):
        assert run(made, {"x": words})["y"].tolist() == ["a", "bc"]
    with pytest.raises(DataError, match="takes strings, fed was int64"):
        run(made, {"x": np.array([1, 2])})


RAW = {
    "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
@pytest.mark.parametrize("name", RAW)
def test_types_that_numpy_lacks(build, name, shape):
    """bfloat16 and float8 go in and come out as ml_dtypes' types, beside ordinary outputs."""
    dtype = getattr(TensorProto, name)
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["z"], to=FLOAT)]
    made = opened(build(nodes, [("x", dtype, None)], [("y", dtype, None), ("z", FLOAT, None)]))
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape).astype(RAW[name])
    results = run(made, {"x": x})
    assert results["y"].dtype == RAW[name]
    assert results["y"].shape == shape
    np.testing.assert_array_equal(results["y"].astype("f4"), x.astype("f4"))
    np.testing.assert_array_equal(results["z"], x.astype("f4"))
    assert results["y"].flags.owndata  # ONNX Runtime frees its own
    with pytest.raises(DataError, match=f"takes {np.dtype(RAW[name]).name}, fed was float32"):
        run(made, {"x": x.astype(np.float32)})


def test_paths_may_be_text(matmul):
    x = np.ones((1, 3), np.float32)
    made = open_session(str(matmul(factor=2)), SessionMode.DEPLOYED)
    np.testing.assert_array_equal(run(made, {"x": x})["y"], 2 * x)


# ONNX Runtime's own words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 "
            "onnxruntime::Model::Model(onnx::ModelProto&&, const PathString&, std::function<void(int)>) Too old.\n",
            "Too old.",
        ),
        (
            "Context: /onnxruntime_src/include/op_kernel.h:45 const T* onnxruntime::OpKernelContext::Input(int) "
            "const [with T = onnxruntime::Tensor] Missing Input: x\n",
            "Context: Missing Input: x",
        ),
        (
            "C:\\a\\_work\\1\\s\\onnxruntime\\core\\graph\\model.cc:183 onnxruntime::Model::Model Too old.",
            "Too old.",
        ),
        ("tensorprotoutils.cc:1876 GetExtDataFromTensorProto Out of bounds", "Out of bounds"),
        ("Load model from /a b/m.onnx failed:This is an invalid model. Error: the graph\nis odd", "the graph is odd"),
        ("", "no reason given"),
    ],
)
def test_texts_lose_their_source_locations(text, expected):
    assert diagnosis._meaningful(text) == expected
