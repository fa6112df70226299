"""The report of a calibrated judge."""
