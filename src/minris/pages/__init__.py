"""Web pages: one folder per group of the menu."""
