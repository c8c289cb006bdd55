"""What every step is: a declaration, and its translation to ONNX."""

from typing import ClassVar

import msgspec

from shoal.controller.training.steps.graph import OPSET, Graph, Value
from shoal.errors import ModelError


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step"):
    """A declared step; its fields are its parameters. A ValueError names parameters that do not go
    together.

    opset   version of the standard operators that it needs
    """

    opset: ClassVar[int] = OPSET

    @classmethod
    def tag(cls) -> str:
        """Its name in a file of steps."""
        return str(cls.__struct_config__.tag)

    def refused(self, value: Value, hint: str) -> ModelError:
        """The error of a value that this step does not take."""
        return ModelError(f"steps: {self.tag()} does not take {value}", hint)


class Source(Step, frozen=True, kw_only=True):
    """The first step of an input: what a request sends."""

    def begin(self, g: Graph, name: str) -> Value:
        """Take the raw input `name`."""
        raise NotImplementedError

    def kinds(self, name: str) -> dict[str, str]:
        """What is sent as `name`, for sketches: tensor_kinds.parse_kinds."""
        return {}


class InputStep(Step, frozen=True, kw_only=True):
    """A step between what is sent and the model."""

    def apply(self, g: Graph, value: Value) -> Value:
        """Append the step's nodes; ModelError when it does not take such a value."""
        raise NotImplementedError


class OutputStep(Step, frozen=True, kw_only=True):
    """A step behind the model."""

    def apply(self, g: Graph, answer: dict[str, Value]) -> dict[str, Value]:
        """Append the step's nodes.

        answer   values by the suffix of their names; "" is the main one
        """
        raise NotImplementedError
