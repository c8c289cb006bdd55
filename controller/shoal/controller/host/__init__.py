"""What a process of the controller stands on: settings and the context of every use case."""
