"""Machines: devices, troubleshooting, what is stuck."""
