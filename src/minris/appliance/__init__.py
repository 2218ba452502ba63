"""The appliance: start, stop, jobs, health."""
