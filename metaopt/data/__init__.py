"""Readers that several families use."""
