"""A model with declared steps in its graph: one ONNX file that takes raw data.

The author's nodes stay as they are: steps make the tensors that they read, under the names of the
model's inputs, and read what they answer.
"""

from collections.abc import Sequence

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from shoal.controller.releases.records import ModelFacts, TensorFact
from shoal.controller.training.steps.declaration import Declaration, InputChain, OutputChain
from shoal.controller.training.steps.graph import IR, ML, ML_OPSET, ONNX_TYPES, Graph, Value
from shoal.errors import ModelError
from shoal.tensors import DTYPES


def compose(
    model: ModelProto, facts: ModelFacts, declaration: Declaration, name: str
) -> ModelProto:
    """A copy of `model`, of the declaration's opset or newer, with the steps in its graph.

    ModelError, naming `name` where it is about the file, when steps do not fit its inputs and
    outputs or each other.
    """
    taken = _tensor_names(model.graph)
    inputs = {one.name: one for one in facts.inputs}
    outputs = {one.name: one for one in facts.outputs}
    g = Graph(_free_prefix(taken), {one.name: _value(one) for one in facts.outputs})
    for chain in declaration.inputs:
        _check_known("input", chain.name, list(inputs), name)
        _append_input(g, chain, inputs[chain.name])
    before = len(g.nodes)
    ends = [_append_output(g, chain, outputs, name) for chain in declaration.outputs]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    new = [*g.inputs, *(value.name for values in ends for value in values)]
    _check_free(new, taken, name)
    _put_nodes(copy.graph, g, before)
    _put_interface(copy.graph, g, declaration, ends)
    copy.ir_version = max(copy.ir_version, IR)
    _put_opsets(copy, g, declaration.opset, name)
    return copy


def _append_input(g: Graph, chain: InputChain, wanted: TensorFact) -> None:
    g.source = chain.source
    value = chain.first.begin(g, chain.source)
    for step in chain.steps:
        value = step.apply(g, value)
    _check_fits(value, wanted)
    g.into(wanted.name, "Identity", value.name)


def _append_output(
    g: Graph, chain: OutputChain, outputs: dict[str, TensorFact], name: str
) -> list[Value]:
    _check_known("output", chain.name, list(outputs), name)
    fact = outputs[chain.name]
    if fact.type not in DTYPES:
        raise ModelError(f"{name}: output {fact.name!r} is {fact.type}: no step takes it")
    answer = {"": _value(fact)}
    for step in chain.steps:
        answer = step.apply(g, answer)
    named = []
    for suffix, value in answer.items():
        g.into(chain.called + suffix, "Identity", value.name)
        named.append(value._replace(name=chain.called + suffix))
    return named


def _value(fact: TensorFact) -> Value:
    shape = None if fact.shape is None else tuple(fact.shape)
    return Value(fact.name, fact.type, shape)  # type: ignore[arg-type]


def _check_fits(value: Value, wanted: TensorFact) -> None:
    """ModelError unless the model's input can be fed with `value`."""
    if value.datatype != wanted.type:
        raise ModelError(
            f"steps: {wanted.name!r} is {wanted.type}, its steps end in {value}",
            f'end them with {{ step = "cast", to = "{wanted.type}" }}',
        )
    assert value.shape is not None
    if wanted.shape is None:
        return
    channels = value.shape[-1] if value.channels else "?"
    turned = channels in wanted.shape[1:2] and channels not in wanted.shape[-1:]
    if (
        turned
        or len(wanted.shape) != len(value.shape)
        or any(
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(wanted.shape, value.shape, strict=True)
        )
    ):
        shape = f"[{', '.join(map(str, wanted.shape))}]"
        hint = "change the sizes in its steps"
        if turned:
            hint = 'the model reads channels first: end with { step = "layout", to = "CHW" }'
        raise ModelError(f"steps: {wanted.name!r} is {shape}, its steps end in {value}", hint)


def _check_known(what: str, wanted: str, names: Sequence[str], name: str) -> None:
    if wanted not in names:
        raise ModelError(
            f"steps: {name} has no {what} {wanted!r:.80}",
            f"its {what}s are: {', '.join(names)[:400] or 'none'}",
        )


def _check_free(new: Sequence[str], taken: set[str], name: str) -> None:
    for one in new:
        if one in taken or list(new).count(one) > 1:
            raise ModelError(
                f"steps: {name} has a tensor {one!r} already"
                if one in taken else f"steps: two tensors are named {one!r}",
                'give it another name: from = "NAME" of an input, as = "NAME" of an output',
            )  # fmt: skip


def _tensor_names(graph: GraphProto) -> set[str]:
    """Names in a graph, and in the bodies of its If, Loop and Scan: none may stand for two."""
    names = {value.name for value in (*graph.input, *graph.output)}
    names |= {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                names |= _tensor_names(body)
    return names


def _free_prefix(taken: set[str]) -> str:
    prefix = "steps/"
    while any(name.startswith(prefix) for name in taken):
        prefix = f"_{prefix}"
    return prefix


def _put_nodes(graph: GraphProto, g: Graph, before: int) -> None:
    authors = list(graph.node)
    del graph.node[:]
    graph.node.extend([*g.nodes[:before], *authors, *g.nodes[before:]])
    graph.initializer.extend(g.tensors)


def _put_interface(
    graph: GraphProto, g: Graph, declaration: Declaration, ends: Sequence[Sequence[Value]]
) -> None:
    made = {chain.name for chain in declaration.inputs}
    read = {chain.name for chain in declaration.outputs}
    inputs = [_info(value) for value in g.inputs.values()]
    inputs += [value for value in graph.input if value.name not in made]
    outputs = [_info(value) for values in ends for value in values]
    outputs += [value for value in graph.output if value.name not in read]
    kept_inputs, kept_outputs = [_copy(one) for one in inputs], [_copy(one) for one in outputs]
    del graph.input[:], graph.output[:]
    graph.input.extend(kept_inputs)
    graph.output.extend(kept_outputs)


def _info(value: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, ONNX_TYPES[value.datatype], value.shape)


def _copy(value: ValueInfoProto) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    return copy


def _put_opsets(model: ModelProto, g: Graph, opset: int, name: str) -> None:
    versions = {one.domain: one for one in model.opset_import}
    if not versions.keys() & {"", "ai.onnx"}:
        model.opset_import.append(helper.make_opsetid("", opset))
    if not any(node.domain == ML for node in g.nodes):
        return
    if ML not in versions:
        model.opset_import.append(helper.make_opsetid(ML, ML_OPSET))
    elif versions[ML].version < ML_OPSET:
        # LabelEncoder is the only operator that version 2 changed.
        own = sum(node.op_type == "LabelEncoder" for node in g.nodes)
        if sum(node.op_type == "LabelEncoder" for node in model.graph.node) > own:
            raise ModelError(
                f"{name} has a LabelEncoder of {ML} {versions[ML].version}, the steps have that of "
                f"{ML_OPSET}",
                f"export it with {ML} {ML_OPSET} or newer",
            )
        versions[ML].version = ML_OPSET
