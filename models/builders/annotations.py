"""Models that say something beside their arithmetic: metadata, doc strings, annotations, training, devices."""

import onnx
from onnx import TensorProto, helper

from onnxopt.models.builders.registry import rare, rare_unrunnable
from onnxopt.models.builders.sketch import Sketch


@rare
def metadata_everywhere() -> onnx.ModelProto:
    """Metadata of model, graph, subgraph, nodes, values, tensors, function and its nodes (IR 10)."""
    model = _annotated_model("metadata-everywhere")
    for part in _parts(model):
        part.metadata_props.add(key="kind", value=type(part).__name__)
        part.metadata_props.add(key="note", value="kept as it is, käse included")
    return model


@rare
def doc_strings_everywhere() -> onnx.ModelProto:
    """Doc strings of all that can have one, and the model's own producer, domain and version."""
    model = _annotated_model("doc-strings-everywhere")
    model.producer_version, model.domain, model.model_version = "1.2", "org.example", 42
    for part in _parts(model):
        part.doc_string = f"About this {type(part).__name__}."
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.doc_string = "About this attribute."
    return model


_Part = onnx.ModelProto | onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.FunctionProto


def _parts(model: onnx.ModelProto) -> list[_Part]:
    graph = model.graph
    body = next(attribute.g for node in graph.node for attribute in node.attribute if attribute.name == "then_branch")
    parts: list[_Part] = [model, graph, body]
    for owner in (graph, body):
        parts += [*owner.node, *owner.input, *owner.output, *owner.value_info, *owner.initializer]
    for function in model.functions:
        parts += [function, *function.node, *function.value_info]
    return parts


def _annotated_model(name: str) -> onnx.ModelProto:
    """A graph with a value info, an initializer, a subgraph and a function: all that can carry text."""
    sketch = Sketch(name, ir_version=10)
    sketch.domains["test.notes"] = 1
    x = sketch.input("x", ["batch", 4])
    hidden = sketch.node("MatMul", x, sketch.random("w", 4, 4), outputs=["hidden"])
    then, other = Sketch("then"), Sketch("other")
    then.output(then.node("Add", hidden, then.random("b", 4), outputs=["sum"]), ["batch", 4])
    other.output(other.node("Neg", hidden, outputs=["negated"]), ["batch", 4])
    condition = sketch.node("Greater", sketch.node("ReduceSum", x, keepdims=0), sketch.random("threshold"))
    y = sketch.node("If", condition, then_branch=then.graph(), else_branch=other.graph())
    sketch.output(sketch.node("Double", y, domain="test.notes", outputs=["y"]), ["batch", 4])
    inner = helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 4])
    nodes = [helper.make_node("Add", ["a", "a"], ["c"]), helper.make_node("Identity", ["c"], ["b"])]
    imports = [helper.make_opsetid("", 18)]
    double = helper.make_function("test.notes", "Double", ["a"], ["b"], nodes, imports, value_info=[inner])
    model = sketch.model([double])
    model.graph.value_info.append(helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["batch", 4]))
    return model


@rare
def quantization_annotation() -> onnx.ModelProto:
    """A tensor's scale and zero point by annotation, as onnx's GraphProto allows beside Q/DQ nodes."""
    sketch = Sketch("quantization-annotation")
    hidden = sketch.node("MatMul", sketch.input("x", ["batch", 4]), sketch.random("w", 4, 4), outputs=["hidden"])
    sketch.output(sketch.node("Relu", hidden, outputs=["y"]), ["batch", 4])
    sketch.random("hidden_scale")
    sketch.weight("hidden_zero_point", helper.make_tensor("", TensorProto.INT8, [], [3]))
    model = sketch.model()
    annotation = model.graph.quantization_annotation.add(tensor_name=hidden)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="hidden_scale")
    annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="hidden_zero_point")
    return model


@rare
def denotations() -> onnx.ModelProto:
    """Symbolic dimensions, named, unnamed and computed, with denotations of dimensions and types."""
    sketch = Sketch("denotations")
    x = sketch.input("x", ["batch", 3, "height", "width"])
    y = sketch.node("Conv", x, sketch.random("w", 4, 3, 3, 3), outputs=["y"])
    sketch.output(y, ["batch", 4, "height - 2", None])
    model = sketch.model()
    for info in (*model.graph.input, *model.graph.output):
        info.type.denotation = "IMAGE"
        meanings = ("DATA_BATCH", "DATA_CHANNEL", "DATA_FEATURE", "DATA_FEATURE")
        for dim, meaning in zip(info.type.tensor_type.shape.dim, meanings, strict=True):
            dim.denotation = meaning
    return model


@rare
def training_info() -> onnx.ModelProto:
    """An algorithm graph that updates the weights, with its initialization and bindings."""
    sketch = Sketch("training-info")
    w = sketch.random("w", 4, 5)
    sketch.output(sketch.node("MatMul", sketch.input("x", ["batch", 4]), w, outputs=["y"]), ["batch", 5])
    model = sketch.model()
    start = Sketch("initialization")
    start.output(start.node("RandomNormal", shape=[4, 5], seed=0.0, outputs=["w_start"]), [4, 5])
    step = Sketch("algorithm")
    gradient = step.input("gradient", [4, 5])
    update = step.node("Mul", gradient, step.random("rate"))
    step.output(step.node("Sub", "w", update, outputs=["w_next"]), [4, 5])
    training = model.training_info.add(initialization=start.graph(), algorithm=step.graph())
    training.initialization_binding.add(key="w", value="w_start")
    training.update_binding.add(key="w", value="w_next")
    return model


@rare
def device_configurations() -> onnx.ModelProto:
    """A node sharded over two devices (IR 11)."""
    sketch = Sketch("device-configurations", ir_version=11)
    w = sketch.random("w", 4, 6)
    sketch.output(sketch.node("MatMul", sketch.input("x", ["batch", 4]), w, outputs=["y"]), ["batch", 6])
    model = sketch.model()
    model.configuration.add(name="pair", num_devices=2, device=["left", "right"])
    placed = model.graph.node[0].device_configurations.add(configuration_id="pair", pipeline_stage=1)
    spec = placed.sharding_spec.add(tensor_name=w, device=[0, 1])
    axis = spec.sharded_dim.add(axis=1)
    axis.simple_sharding.add(dim_value=6, num_shards=2)
    return model


@rare
def no_names() -> onnx.ModelProto:
    """Nodes without names."""
    return _all_called("")


@rare_unrunnable
def same_names() -> onnx.ModelProto:
    """Nodes that share a name: valid, and refused by onnxruntime."""
    return _all_called("same")


def _all_called(name: str) -> onnx.ModelProto:
    sketch = Sketch("all-called-alike")
    y = sketch.input("x", ["batch", 4])
    for op in ("Relu", "Neg", "Tanh"):
        y = sketch.node(op, y)
        sketch.nodes[-1].name = name
    sketch.output(y, ["batch", 4])
    return sketch.model()
