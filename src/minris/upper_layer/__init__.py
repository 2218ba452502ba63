"""Associations, opened by others and by us (PS3.8)."""
