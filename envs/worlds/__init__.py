"""Environments that MIRL registers itself."""
