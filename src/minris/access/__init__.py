"""Who asks and when; devices, users, roles."""
