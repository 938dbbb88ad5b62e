"""Typed configuration: the schema, and the YAML presets that Hydra composes. Importing it never imports torch."""
