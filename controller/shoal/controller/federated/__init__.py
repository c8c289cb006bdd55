"""Federated rounds, decided: strategies, sums, budgets and the round itself. No I/O."""
