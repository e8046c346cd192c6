"""Adapters that read a data set or a label table, and the checks that make a manifest of it."""
