"""Many steps in one call: a step graph inside ONNX's Scan, one turn per minibatch."""

from typing import Any

import msgspec
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from shoal.controller.training.gradient.assembly import finished
from shoal.params import spec_of

#: Inputs that a step hands to the next, and those that each step has its own of. The others
#: (mu, theta0, shift) are the same for all steps: the body takes them from outside.
_CARRIED = ("theta", "state")
_EACH = ("x", "y", "lr", "correction")
#: Prefix of names inside the body: those outside are its inputs'.
_BODY = "one/"


def many_steps(step: ModelProto) -> ModelProto:
    """The step graph K times. Inputs as the step's, x, y, lr and correction with a leading axis K.

    Outputs theta_out, state_out, and loss: float (K,), one a step. All minibatches are of one
    size; the last, smaller one is a call of the step graph.
    """
    body = _body(step.graph)
    inputs = {value.name: value for value in step.graph.input}
    outputs = {value.name: value for value in step.graph.output}
    carried = [name for name in _CARRIED if name in inputs]
    each = [name for name in _EACH if name in inputs]
    results = [*(f"{name}_out" for name in carried), "loss"]
    scan = helper.make_node(
        "Scan", [*carried, *each], results, body=body, num_scan_inputs=len(each)
    )
    graph = helper.make_graph(
        [scan], "train_many",
        [_led(value) if name in each else value for name, value in inputs.items()],
        [_led(outputs[name]) if name == "loss" else outputs[name] for name in results],
    )  # fmt: skip
    spec = spec_of({p.key: p.value for p in step.metadata_props})
    return finished(graph, step, msgspec.structs.replace(spec, many=True))


def _body(graph: GraphProto) -> GraphProto:
    """The step with its inputs and outputs renamed and in Scan's order: carried, then each."""
    body = GraphProto()
    body.CopyFrom(graph)
    own = {name: _BODY + name for name in (*_CARRIED, *_EACH)}
    own |= {value.name: _BODY + value.name for value in graph.output}
    for node in body.node:
        for names in (node.input, node.output):
            names[:] = [own.get(name, name) for name in names]
    _reorder(body.input, own, [*_CARRIED, *_EACH])
    _reorder(body.output, own, ["theta_out", "state_out", "loss"])
    return body


def _reorder(values: Any, own: dict[str, str], order: list[str]) -> None:
    by_name = {value.name: value for value in values}
    kept = []
    for name in order:
        if name in by_name:
            value = ValueInfoProto()
            value.CopyFrom(by_name[name])
            value.name = own[name]
            kept.append(value)
    del values[:]
    values.extend(kept)


def _led(value: ValueInfoProto) -> ValueInfoProto:
    """The same with a leading axis of K steps."""
    kind = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    return helper.make_tensor_value_info(value.name, kind.elem_type, ["K", *dims])
