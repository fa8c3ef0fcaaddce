"""Preference objectives: pure functions of log-probs, and the running statistics that two of them keep."""
