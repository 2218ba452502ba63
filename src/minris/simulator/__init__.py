"""Simulated devices to test a server with."""
