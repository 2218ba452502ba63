"""Deliveries: what calls other systems, with retries."""
