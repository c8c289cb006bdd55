"""`shoal`, the operator's command line: everything it knows, it asks the controller's API."""
