"""Binary scores, calibration, best of n, and resampling."""
