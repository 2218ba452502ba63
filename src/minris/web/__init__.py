"""The web server, and what a request is."""
