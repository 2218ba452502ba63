"""Door 1: which DIMSE message calls which core function (PS3.7)."""
