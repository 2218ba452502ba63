"""Patients, orders, scheduled steps, the worklist."""
