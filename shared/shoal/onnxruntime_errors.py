"""What onnxruntime's messages mean for a model that does not load, and what to do about it."""

import re

_EXPLANATIONS = (
    (r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
     "the model has IR version {0}, this onnxruntime reads up to {1}",
     "save it with ir_version {1}, or update onnxruntime"),
    (r"Opset (\d+) is under development.*?till opset (\d+)",
     "the model uses opset {0}, this onnxruntime knows up to {1}",
     "export it with opset {1} or older, or update onnxruntime"),
    (r"(?:No Op registered for |Fatal error: )([\w.:]+)(?:\(-?\d+\) is not a registered| with)",
     "operator {0} is unknown to this onnxruntime",
     "export the model without it, or with an opset that this device has"),
    (r"Could not find an implementation for (\w+)\((\d+)\)",
     "operator {0} (opset {1}) has no implementation on this CPU",
     "quantize or export it differently"),
    (r"Failed to construct locale with name:([\w.-]+):",
     "it compares texts by the rules of {0}, which this machine does not have",
     'export it with locale "C"; in scikit-learn: {{TfidfVectorizer: {{"locale": "C"}}}}'),
    (r"Protobuf parsing failed", "the file is no ONNX model", "export it again"),
)  # fmt: skip


def explain(text: str) -> tuple[str, str] | None:
    """What is wrong, and the next step, for an error message of onnxruntime; None if unknown.

    >>> explain("Unsupported model IR version: 99, max supported IR version: 14")
    ('the model has IR version 99, this onnxruntime reads up to 14', \
'save it with ir_version 14, or update onnxruntime')
    """
    for pattern, what, hint in _EXPLANATIONS:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return what.format(*found.groups()), hint.format(*found.groups())
    return None
