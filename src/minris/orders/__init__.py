"""Patients, orders, scheduled steps and the worklist."""
