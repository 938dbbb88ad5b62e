"""Backends that step environments: Gymnasium in this process or in workers, and EnvPool."""
