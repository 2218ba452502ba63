"""Encoded data sets."""
