"""The connection to an MLflow server."""
