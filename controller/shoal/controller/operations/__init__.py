"""Long work as rows, done by a subprocess."""
