"""Patients: registration, patients, catalogue, import."""
