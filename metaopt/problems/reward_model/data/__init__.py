"""Preference pairs: as texts (their sources and formats), as features, and of simulated worlds.

Dialogues of HH-RLHF are offensive on purpose, so no reader of pairs prints, logs or quotes a row:
what is wrong with one is said by its number, its columns and their types.
"""
