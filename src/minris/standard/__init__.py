"""What DICOM says, as tables."""
