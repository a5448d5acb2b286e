"""Whole systems: choices, no new mechanisms; and the programs and console script that run them."""
