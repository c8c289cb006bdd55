"""What a user's model may be, and what is said when it may not."""

import numpy as np
import pytest
from onnx import ModelProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from shoal.controller.training.gradient.forward import opset_of
from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import prepare, step_graph
from shoal.controller.training.gradient.reading import OPSET, read
from shoal.controller.training.gradient.selection import last_layer, named
from shoal.errors import ModelError
from unit.training.gradient.models import classes, mlp, written
from unit.training.gradient.running import Trainer, session

W = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def test_an_operator_without_a_gradient_is_named_with_its_node_and_a_hint() -> None:
    model = written(
        "m (float[N,5] x) => (float[N,3] out) { a = MatMul(x, w)  out = Det2(a) }", {"w": W}
    )
    model.graph.node[1].op_type, model.graph.node[1].name = "CumSum", "running/total"
    model.graph.node[1].input.append("axis")
    model.graph.initializer.append(helper.make_tensor("axis", 7, [], [1]))
    with pytest.raises(ModelError) as caught:
        step_graph(prepare(model, Loss("mse")))
    assert "operator CumSum of node 'running/total' has no gradient" in str(caught.value)
    assert "train only what lies behind it" in str(caught.value)
    assert caught.value.facts == {"op": "CumSum", "node": "running/total"}


def test_an_operator_without_a_gradient_does_no_harm_before_what_is_trained() -> None:
    model = written(
        "m (float[N,5] x) => (float[N,3] out) { c = CumSum(x, axis)  out = MatMul(c, w) }",
        {"w": W, "axis": np.array(1)},
    )
    x, y = classes(4)
    trainer = Trainer(step_graph(prepare(model, Loss("cross-entropy"))), W.ravel())
    assert trainer.step(x, y, 0.1) > trainer.step(x, y, 0.1)


def test_trees_are_refused_with_what_to_train_instead() -> None:
    x, y = load_iris(return_X_y=True)
    forest = RandomForestClassifier(3, random_state=0).fit(x, y)
    model = to_onnx(forest, x[:1].astype(np.float32), options={"zipmap": False}, target_opset=17)
    with pytest.raises(ModelError, match=r"TreeEnsembleClassifier.*train mlp or logistic instead"):
        prepare(model, Loss("cross-entropy"))


def test_a_batch_that_was_exported_fixed_is_freed_or_refused() -> None:
    free = mlp()
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert prepare(free, Loss("mse")).theta.size == 75
    fixed = written(
        "m (float[1,5] x) => (float[1,3] out) { a = Reshape(x, s)  out = MatMul(a, w) }",
        {"w": W, "s": np.array([1, 5])},
    )
    with pytest.raises(ModelError, match="export the model with a free batch dimension"):
        prepare(fixed, Loss("mse"))


def test_names_that_the_train_graph_uses_may_be_the_models_too() -> None:
    model = written(
        """m (float[N,5] theta) => (float[N,3] theta_out) {
            loss = MatMul(theta, lr)  y = Add(loss, state)  theta_out = Softmax(y) }""",
        {"lr": W, "state": np.zeros(3, np.float32)},
    )
    prepared = prepare(model, Loss("cross-entropy"))
    trainer = Trainer(step_graph(prepared), prepared.theta)
    x, y = classes(16)
    assert trainer.step(x, y, 0.1) > trainer.step(x, y, 0.1)
    assert [p.name for p in prepared.parameters] == ["lr", "state"]


def test_control_flow_is_refused() -> None:
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("w", 1, [5, 3])])
    model = mlp()
    model.graph.node.insert(0, helper.make_node("If", ["x"], ["c"], then_branch=body))
    with pytest.raises(ModelError, match="export the model without If, Loop and Scan"):
        prepare(model, Loss("mse"))


def two_outputs() -> ModelProto:
    return written(
        """m (float[N,5] x) => (float[N,3] left, float[N,3] right) {
            left = MatMul(x, w)  right = MatMul(x, v) }""",
        {"w": W, "v": W + 1},
    )


def test_of_several_outputs_one_has_to_be_named_and_the_rest_is_removed() -> None:
    with pytest.raises(ModelError, match="name the one that is trained, of: left, right"):
        prepare(two_outputs(), Loss("mse"))
    prepared = prepare(two_outputs(), Loss("mse"), output="right")
    assert [p.name for p in prepared.parameters] == ["v"]


def test_a_model_with_two_inputs_is_refused_by_their_names() -> None:
    model = written("m (float[N,5] x, float[N,5] z) => (float[N,5] out) { out = Mul(x, z) }")
    with pytest.raises(ModelError, match="the model has inputs: x, z"):
        prepare(model, Loss("mse"))


def test_an_older_model_is_raised_to_the_oldest_opset_that_is_differentiated() -> None:
    model = written(
        """m (float[N,5] x) => (float[N,3] out) {
            a = MatMul(x, w)  b = Unsqueeze<axes=[2]>(a)  out = Squeeze<axes=[2]>(b) }""",
        {"w": W},
        opset=11,
    )
    raised = read(model)
    assert opset_of(raised) == OPSET
    x, _ = classes(4)
    np.testing.assert_array_equal(*(session(m).run(None, {"x": x})[0] for m in (model, raised)))


def test_a_newer_model_keeps_its_opset() -> None:
    model = mlp("Softmax")
    model.opset_import[0].version = 20
    graph = step_graph(prepare(model, Loss("cross-entropy")))
    assert opset_of(graph) == 20
    assert session(graph)


def test_a_scaler_before_the_first_layer_is_left_alone() -> None:
    assert "scale" not in [p.name for p in prepare(mlp(), Loss("mse")).parameters]


def test_the_last_layer_is_its_weights_and_its_bias() -> None:
    head = prepare(mlp("Softmax"), Loss("cross-entropy"), last_layer)
    assert [p.name for p in head.parameters] == ["w2", "b2"]


def test_initialisers_are_chosen_by_name_and_a_name_without_a_match_is_an_error() -> None:
    chosen = prepare(mlp(), Loss("mse"), named(["*1", "scale"]))
    assert {p.name for p in chosen.parameters} == {"scale", "w1", "b1"}
    with pytest.raises(ModelError, match=r"no float initialiser is named 'head\.\*'.*w1, b1, w2"):
        prepare(mlp(), Loss("mse"), named(["head.*"]))


def test_a_parameter_that_the_loss_does_not_feel_is_named() -> None:
    model = written(
        """m (float[N,5] x) => (float[N,3] out) {
            n = BatchNormalization(x, s, b, m, v)  out = MatMul(n, w) }""",
        {"w": W, **dict.fromkeys("sbmv", np.ones(5, np.float32))},
    )
    assert [p.name for p in prepare(model, Loss("mse")).parameters] == ["s", "b", "w"]
    with pytest.raises(ModelError, match="parameter 'm' has no influence on the loss"):
        step_graph(prepare(model, Loss("mse"), named(["m", "w"])))


def test_a_model_without_layers_has_nothing_to_train() -> None:
    model = written("m (float[N,5] x) => (float[N,5] out) { out = Relu(x) }")
    with pytest.raises(ModelError, match="nothing in this model can be trained"):
        prepare(model, Loss("mse"))


def test_a_weight_that_is_used_twice_is_one_parameter_with_both_gradients() -> None:
    model = written(
        """m (float[N,5] x) => (float[N,5] out) {
            a = MatMul(x, w)  t = Transpose(w)  out = MatMul(a, t) }""",
        {"w": W},
    )
    prepared = prepare(model, Loss("mse"))
    x, _ = classes(8)
    trainer = Trainer(step_graph(prepared), prepared.theta)
    trainer.step(x, x, 1.0)
    off = (x @ W @ W.T - x) * 2 / x.size
    right = x.T @ off @ W + off.T @ x @ W
    np.testing.assert_allclose(trainer.theta, W.ravel() - right.ravel(), atol=1e-6)


def test_a_weight_that_reaches_its_layer_in_pieces_cut_by_a_computed_size_is_still_trained() -> (
    None
):
    model = written(
        """m (float[N,5] x) => (float[N,2] out) {
            size = Shape(b)  first = Slice(w, zero, size, one)  out = MatMul(x, first)}""",
        {"w": W, "b": np.zeros(2, np.float32), "zero": np.array([0]), "one": np.array([1])},
    )
    prepared = prepare(model, Loss("mse"))
    x, _ = classes(8)
    trainer = Trainer(step_graph(prepared), prepared.theta)
    trainer.step(x, np.zeros((8, 2), np.float32), 1.0)
    moved = (trainer.theta - prepared.theta).reshape(5, 3)
    assert (moved[:, :2] != 0).all()
    assert (moved[:, 2] == 0).all()
