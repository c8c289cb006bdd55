"""Sources and sinks: readings from the plant to the models, and predictions back."""
