"""Traces and captures: what passes the functions, in files."""
