"""Sources and sinks: a plant's values to the models, and predictions back."""
