"""Figures of scores and decisions: one implementation of each, for every family.

`binary` has AUROC, Brier, kappa, Wilson's interval and the calibration error; `best_of_n` best of
n, pass@n and majority votes; `calibration` a judge with its threshold and its probabilities;
`bootstrap` intervals that resample whole queries.
"""
