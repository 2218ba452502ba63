"""DICOMweb: which HTTP request calls which core function (PS3.18)."""
