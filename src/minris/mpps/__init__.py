"""Modality performed procedure steps."""
