"""The web server and its requests."""
