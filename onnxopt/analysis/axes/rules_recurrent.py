"""Recurrent layers: a unit is its row in every gate, its column of the recurrence, and its initial state.

Inside the operator units read one another through the recurrence matrix alone, whatever the activations and initial
states are: with zeros in a unit's column there, and where its output is read, nobody sees the unit.
"""

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.symbols import Call as Known

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3
_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)
_GATE = "the gates of a recurrent layer"
_DIRECTION = "the directions of a recurrent layer"
_STEPS = "the steps of a recurrent layer"


@rule("LSTM", "GRU", "RNN")
def _recurrent(call: Call) -> None:
    x, weight, recurrence = call.axes(_X), call.axes(_W), call.axes(_R)
    count = None if recurrence is None or len(recurrence) != 3 else size_of(recurrence[2])
    if x is None or weight is None or recurrence is None or not isinstance(count, int):
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "a recurrent layer whose weights have an unknown shape", "needs-rule")
        return
    gates = _GATES[call.node.op_type]
    units = recurrence[2]
    for axes, times in ((weight, gates), (recurrence, gates), (call.axes(_B), 2 * gates), (call.axes(_P), _PEEPHOLES)):
        _by_gate(call, units, axes, times, count)
    call.unite(x[2], weight[2])
    call.consume(_X, 2, x[2])
    call.consume(_W, 2, weight[2])
    call.consume(_R, 2, units, inside=True)
    call.tag(units, "recurrent")
    batch_first = bool(call.integer("layout", 0))
    steps, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    call.hold(steps, _STEPS)
    _states(call, batch, units, 0 if batch_first else 1)
    directions = weight[0]
    last = (batch, directions, units) if batch_first else (directions, batch, units)
    call.give((batch, steps, directions, units) if batch_first else (steps, directions, batch, units))
    call.give(last, 1)
    call.give(last, 2)


def _by_gate(call: Call, units: Axis, axes: Axes | None, gates: int, count: int) -> None:
    """The axis behind the directions has the units once for each gate."""
    if axes is None:
        return
    call.hold(axes[0], _DIRECTION)
    outer, inner = call.apart(axes[1], gates, count)
    call.hold(outer, _GATE)
    call.unite(units, inner)


def _states(call: Call, batch: Axis, units: Axis, place: int) -> None:
    """Initial states have a sequence's batch and the units; `place`: of the batch. Zeros may as well be left out.

    Exporters make one tensor of zeros for all layers, which therefore says nothing about the units of any two.
    """
    for index in _state_inputs(call.node):
        state = None if _is_zero(call.known, index) else call.axes(index)
        if state is not None:
            call.hold(state[1 - place], _DIRECTION)
            call.unite(batch, state[place])
            call.unite(units, state[2])
    lengths = call.axes(_LENGTHS)
    if lengths is not None:
        call.unite(batch, lengths[0])


@rewrite("LSTM", "GRU", "RNN")
def _hidden_size(patch: Patch) -> None:
    patch.set_attribute("hidden_size", patch.size(_R, 2))
    for index in _state_inputs(patch.node):
        if _is_zero(patch.known, index) and patch.kept_channels.touches(patch.axes_out()):
            patch.edit.set_input(patch.node, index, None)


def _state_inputs(node: ir.Node) -> Sequence[int]:
    return (_H, _C) if node.op_type == "LSTM" else (_H,)


def _is_zero(known: Known, index: int) -> bool:
    """Whether an initial state is certainly all zeros, as one that is left out."""
    value = known.fact(index).uniform
    return isinstance(value, int | float) and value == 0
