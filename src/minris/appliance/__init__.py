"""The box: start, stop, jobs, health."""
