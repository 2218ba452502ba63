"""Workitems, subscriptions, events (PS3.4 CC)."""
