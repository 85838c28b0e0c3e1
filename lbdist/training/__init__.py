"""Training: a loop that knows nothing of Ray, and Ray Train around it."""
