"""Export a scikit-learn pipeline to ONNX with Shoal's input and output."""

from onnx import ModelProto
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline

from shoal.controller.training.io import boosted_trees
from shoal.controller.training.io.onnx_graph import normalise
from shoal.errors import ModelError

#: Opset of every exported model: old enough for any supported onnxruntime, new enough for
#: per-channel QDQ. The exporter's default would change with its version.
OPSET, OPSET_ML = 17, 3


def export(pipeline: Pipeline, features: int, columns: int) -> ModelProto:
    """ONNX model: input float32 (N, features), output float32 (N, columns).

    columns   number of classes, or 1 for regression
    """
    classifier = hasattr(pipeline, "predict_proba")
    try:
        model = convert_sklearn(
            pipeline,
            name="model",  # a random one otherwise: the same training gives the same bytes
            custom_conversion_functions=boosted_trees.CONVERTERS,
            initial_types=[("input", FloatTensorType([None, features]))],
            options={"zipmap": False} if classifier else None,
            target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML},
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ModelError(f"this estimator does not export to ONNX: {error}") from error
    wanted = "probabilities" if classifier else model.graph.output[0].name
    return normalise(model, wanted, features, columns)
