"""Federated tasks and their rounds: `tasks` what is learned, `rounds` what happened, `course` how
the engine runs them."""
