"""Typed configuration: the schema and the YAML presets composed by Hydra.

Importing this package never imports torch.
"""
