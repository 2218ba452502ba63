"""Machines to try the box with."""
