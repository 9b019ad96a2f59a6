"""The loop and what it holds in its hands: objective, schedule, checkpoint, report."""
