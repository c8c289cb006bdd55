"""Sources and sinks: what a plant gives to the models on a device, and takes from them."""
