"""Targets: what a recipe may write, and what this machine fills in."""

import onnxruntime as ort
import pytest
from pydantic import TypeAdapter, ValidationError

from onnxopt.backends import machine
from onnxopt.backends.target import Qdq, Target

FULL = {
    "name": "cpu",
    "isa": "avx2",
    "threads": 4,
    "onnxruntime": "1.23",
    "max_opset": 21,
    "qdq": {"activation": "int8"},
}


@pytest.mark.parametrize("name", ["portable", "cpu", "cuda"])
def test_a_name_alone(name):
    target = Target.model_validate(name)
    assert target == Target(name=name)
    assert (target.isa, target.threads, target.onnxruntime, target.max_opset) == (None, None, None, None)
    assert target.qdq == Qdq(activation="uint8")


def test_a_mapping_round_trips():
    target = Target.model_validate(FULL)
    assert target.model_dump() == FULL
    assert TypeAdapter(dict[str, Target]).validate_python({"target": "cuda"})["target"].name == "cuda"


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ("gpu", ("name",)),
        ({"name": "tpu"}, ("name",)),
        ({"isa": "sse9"}, ("isa",)),
        ({"threads": 0}, ("threads",)),
        ({"threads": "many"}, ("threads",)),
        ({"onnxruntime": 1.23}, ("onnxruntime",)),
        ({"onnxruntime": "latest"}, ("onnxruntime",)),
        ({"max_opset": 3}, ("max_opset",)),
        ({"qdq": {"activation": "int4"}}, ("qdq", "activation")),
        ({"qdq": {"weights": "int8"}}, ("qdq", "weights")),
        ({"opset": 21}, ("opset",)),
    ],
)
def test_what_is_wrong_is_located(written, where):
    with pytest.raises(ValidationError) as caught:
        Target.model_validate(written)
    assert [error["loc"] for error in caught.value.errors()] == [where]


@pytest.mark.parametrize("written", [7, None, ["cpu"]])
def test_other_types_are_refused(written):
    with pytest.raises(ValidationError):
        Target.model_validate(written)


def test_targets_are_facts():
    target = Target()
    with pytest.raises(ValidationError):
        target.name = "cuda"
    assert hash(target) == hash(Target())


def test_host_is_this_machine():
    host = Target.host()
    assert host.name == "cpu"
    assert host.threads == machine.cores()
    assert ort.__version__.startswith(host.onnxruntime)
    assert host.max_opset >= 21
    assert host.isa in (machine.isa_of(machine.cpu_flags())[:1] or (None,))
    assert Target.model_validate(host.model_dump()) == host


def test_resolving_keeps_what_was_written():
    resolved = Target.model_validate({"name": "cuda", "isa": "neon", "threads": 3, "max_opset": 17}).resolved()
    assert (resolved.name, resolved.isa, resolved.threads, resolved.max_opset) == ("cuda", "neon", 3, 17)
    assert resolved.onnxruntime is not None


def test_portable_assumes_nothing():
    assert Target(name="portable").resolved() == Target(name="portable")


def test_every_instruction_set_that_is_detected_can_be_written():
    for isa in machine.ISA_FLAGS:
        assert Target(isa=isa).isa == isa
