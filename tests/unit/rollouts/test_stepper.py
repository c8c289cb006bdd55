"""The alert of a rollout that does not go on by itself."""

from shoal.controller.rollouts import stepper


def test_a_stalled_rollouts_alert_has_the_command():
    failed = stepper.stalled_draft("r-1", "lot-codes@4", "cam-2: golden-mismatch", failed=True)
    assert failed.severity == "critical"
    assert "shoal rollout abort r-1 --rollback" in failed.next_step
    waits = stepper.stalled_draft("r-1", "lot-codes@4", "needs a signature", failed=False)
    assert waits.severity == "warning"
    assert "shoal rollout resume r-1" in waits.next_step
