"""Criteria read off solutions."""
