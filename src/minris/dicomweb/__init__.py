"""Door 2: which HTTP request calls which core function (PS3.18)."""
