"""Passes that break their promises, each in one way. The tests name them in recipes, as another package's passes."""

import ctypes
import os
import time
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.passing import Context, Exact, Findings, Lossy, Pass, make


class _AtNode(Pass):
    """Does something to the second input, a weight, of one node."""

    node: str = Field("", description="name of the node; the first with a weight where empty")

    def target(self, model: Model) -> tuple[ir.Node, ir.Value] | None:
        for node in model.graph:
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            if weight is not None and weight.const_value is not None and self.node in {"", node.name}:
                return node, weight
        return None

    def put(self, model: Model, array: np.ndarray, node: ir.Node, weight: ir.Value) -> Findings:
        edit = Edit(self.name)
        edit.replace_weight(weight, array)
        model.apply(edit)
        findings = Findings()
        findings.change(node.name, self.name, "another weight")
        return findings


class Scale(_AtNode):
    """Multiply a weight."""

    factor: float = 1.5

    def run(self, model: Model, context: Context) -> Findings:
        found = self.target(model)
        if found is None:
            return Findings()
        node, weight = found
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        return self.put(model, (array * self.factor).astype(array.dtype), node, weight)


class WrongWeight(Scale):
    """Said to be exact."""


class LossyScale(Scale):
    """Said to lose something."""

    contract = Lossy()
    phase = "quantize"


class Rescale(Scale):
    """A lossy pass in an earlier phase."""

    contract = Lossy()
    phase = "transform"


class Transpose(_AtNode):
    """Said to be exact: the weight of a square MatMul the other way round."""

    def run(self, model: Model, context: Context) -> Findings:
        found = self.target(model)
        if found is None:
            return Findings()
        node, weight = found
        assert weight.const_value is not None
        return self.put(model, np.ascontiguousarray(weight.const_value.numpy().T), node, weight)


class LooseWeight(Scale):
    """Exact with a tolerance of its own."""

    contract = Exact(tolerance=0.9)


class NanWeight(_AtNode):
    """A NaN in a weight."""

    contract = Lossy()
    phase = "quantize"

    def run(self, model: Model, context: Context) -> Findings:
        found = self.target(model)
        assert found is not None
        node, weight = found
        assert weight.const_value is not None
        array = np.array(weight.const_value.numpy())
        array.flat[0] = np.nan
        return self.put(model, array, node, weight)


class Silent(WrongWeight):
    """Changes a weight and does not say so."""

    def run(self, model: Model, context: Context) -> Findings:
        super().run(model, context)
        return Findings()


class SilentButRight(Pass):
    """Writes a weight again, unchanged, and does not say so."""

    def run(self, model: Model, context: Context) -> Findings:
        value = next(model.weights())
        assert value.const_value is not None
        edit = Edit()
        edit.replace_weight(value, value.const_value.numpy())
        model.apply(edit)
        return Findings()


class Boastful(Pass):
    """Reports what it did not do."""

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        findings.change("nothing", "boast", "made it much faster")
        return findings


class RenameOutput(Pass):
    """Another name for the output."""

    def run(self, model: Model, context: Context) -> Findings:
        return _did(self, model, lambda: setattr(model.graph.outputs[0], "name", "renamed"))


class DropInput(Pass):
    """The last input goes."""

    def run(self, model: Model, context: Context) -> Findings:
        value = model.graph.inputs[-1]

        def drop() -> None:
            model.graph.inputs.pop()
            zero = ir.Tensor(np.zeros((2, 3), np.float32), name=value.name)
            value.const_value, value.shape = zero, ir.Shape((2, 3))
            model.graph.initializers.add(value)

        return _did(self, model, drop)


class FixDim(Pass):
    """A symbolic dimension becomes a number."""

    def run(self, model: Model, context: Context) -> Findings:
        value = model.graph.inputs[0]
        assert value.shape is not None
        fixed = ir.Shape([8, *value.shape[1:]])
        return _did(self, model, lambda: setattr(value, "shape", fixed))


class Crash(WrongWeight):
    """Fails after it changed something."""

    def run(self, model: Model, context: Context) -> Findings:
        super().run(model, context)
        raise ZeroDivisionError("float division by zero")


class BadEdit(Pass):
    """Asks for an edit that cannot be done."""

    def run(self, model: Model, context: Context) -> Findings:
        edit = Edit(self.name)
        edit.remove(next(iter(model.graph)))
        model.apply(edit)
        return Findings()


class _Append(Pass):
    """Puts a node between the first output and whoever wants it."""

    def node(self, value: ir.Value) -> ir.Node:
        raise TypeError

    def run(self, model: Model, context: Context) -> Findings:
        value = model.graph.outputs[0]
        producer, node = value.producer(), self.node(value)
        assert producer is not None
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        edit = Edit(self.name)
        edit.insert([node], after=producer)
        edit.rewire(value, node.outputs[0])
        if node.domain:
            edit.use_domain(node.domain, 1)
        model.apply(edit)
        findings = Findings()
        findings.change(producer.name, self.name, "a node behind it")
        return findings


class InvalidGraph(_Append):
    """A node of an operator that is not in ONNX."""

    def node(self, value: ir.Value) -> ir.Node:
        return ir.node("Reluu", [value])


class RefusedGraph(_Append):
    """A node that no runtime knows."""

    def node(self, value: ir.Value) -> ir.Node:
        return ir.node("Mystery", [value], domain="com.nobody")


class ExtraNoise(Pass):
    """Random numbers on top of the output."""

    def run(self, model: Model, context: Context) -> Findings:
        value = model.graph.outputs[0]
        producer = value.producer()
        assert producer is not None
        random = ir.node("RandomNormalLike", [value], {"scale": 0.1})
        add = ir.node("Add", [value, random.outputs[0]])
        edit = Edit(self.name)
        edit.insert([random, add], after=producer)
        edit.rewire(value, add.outputs[0])
        model.apply(edit)
        findings = Findings()
        findings.change(producer.name, self.name, "noise")
        return findings


class OffByOne(Pass):
    """One more, in an integer output."""

    def run(self, model: Model, context: Context) -> Findings:
        value = model.graph.outputs[0]
        producer = value.producer()
        assert producer is not None
        edit = Edit(self.name)
        one = edit.add_weight("one", np.array(1, np.int64))
        add = ir.node("Add", [value, one])
        edit.insert([add], after=producer)
        edit.rewire(value, add.outputs[0])
        model.apply(edit)
        findings = Findings()
        findings.change(producer.name, self.name, "one more")
        return findings


class HalfWrong(_AtNode):
    """A composite whose last part is wrong."""

    def expand(self) -> list[Pass]:
        return [make("clean"), make("silent-but-right"), WrongWeight(node=self.node)]


class WrongRewrite(Pass):
    """Every Relu becomes another function."""

    op: str = "LeakyRelu"

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        for node in [node for node in model.graph if node.op_type == "Relu"]:
            new = ir.node(self.op, [node.inputs[0]])
            new.outputs[0].type, new.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            edit = Edit("relu")
            edit.insert([new], after=node)
            edit.rewire(node.outputs[0], new.outputs[0])
            edit.remove(node)
            model.apply(edit)
            findings.change(node.name, "relu", self.op)
        return findings


class Stored(_AtNode):
    """Right, and through the context's store."""

    def run(self, model: Model, context: Context) -> Findings:
        found = self.target(model)
        assert found is not None
        node, weight = found
        assert weight.const_value is not None
        edit = Edit(self.name)
        edit.replace_weight(weight, context.store(weight.const_value.numpy()))
        model.apply(edit)
        findings = Findings()
        findings.change(node.name, self.name, "stored")
        return findings


class SlowSteps(Pass):
    """Right, and takes its time."""

    seconds: float = 0.3

    def run(self, model: Model, context: Context) -> Findings:
        time.sleep(self.seconds)
        return SilentButRight().run(model, context)


def _did(pass_: Pass, model: Model, action: Any) -> Findings:
    action()
    model.revision += 1
    findings = Findings()
    findings.change("", pass_.name, "done")
    return findings


def die_on_numbered(path: str, mode: Any, feeds: Any) -> Any:
    """In place of `run_batches`: the process dies on a candidate (`NNN.onnx` of the work folder)."""
    from onnxopt.backends.jobs import run_batches

    if os.path.basename(path)[:3].isdigit():
        ctypes.string_at(0)
    return run_batches(path, mode, feeds)


def die(path: str, mode: Any, feeds: Any) -> Any:
    """In place of `run_batches`: the process dies on anything."""
    os._exit(9)
