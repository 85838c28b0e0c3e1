"""The cells of a study handed out: what is done, what comes next, and Ray Tune around it."""
