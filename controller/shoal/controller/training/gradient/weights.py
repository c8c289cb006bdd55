"""Write theta into an inference graph."""

from onnx import ModelProto, TensorProto, numpy_helper

from shoal.errors import ModelError
from shoal.params import F32, Parameter, TrainSpec


def layout_of(tensors: list[TensorProto]) -> tuple[Parameter, ...]:
    """Layout of these initialisers back to back in theta."""
    found, offset = [], 0
    for tensor in tensors:
        found.append(Parameter(name=tensor.name, shape=tuple(tensor.dims), offset=offset))
        offset += found[-1].size
    return tuple(found)


def write_theta(model: ModelProto, spec: TrainSpec, theta: F32) -> ModelProto:
    """A copy of the model with the parameters of theta; the others are unchanged, bit by bit."""
    copy = ModelProto()
    copy.CopyFrom(model)
    stored = _stored(copy, spec)
    for name, value in spec.split(theta).items():
        kind = numpy_helper.to_array(stored[name]).dtype
        stored[name].CopyFrom(numpy_helper.from_array(value.astype(kind), name))
    return copy


def _stored(model: ModelProto, spec: TrainSpec) -> dict[str, TensorProto]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for parameter in spec.parameters:
        found = stored.get(parameter.name)
        if found is None or tuple(found.dims) != parameter.shape:
            raise ModelError(
                f"the model has no initialiser {parameter.name!r} of shape {parameter.shape}",
                "use the inference graph that was made with this train graph",
            )
    return stored
