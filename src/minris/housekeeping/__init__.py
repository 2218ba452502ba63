"""Erasing, and stuck work."""
