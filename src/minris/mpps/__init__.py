"""Performed procedure steps."""
