"""Drivers that break rules, and are told so."""
