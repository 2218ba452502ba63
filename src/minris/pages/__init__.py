"""The browser's side, a folder for each group of the menu."""
