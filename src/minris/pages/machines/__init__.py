"""Machines: devices, their doctor, what is stuck."""
