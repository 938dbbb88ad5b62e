"""MIRL: reinforcement learning with multiplicative interactions of observation and goal.

The root of the repository is the import package ``mirl``: ``agents/`` is ``mirl.agents`` and
``train.py`` is ``mirl.train``; pyproject.toml holds the mapping. Always import ``mirl.…``, never
just ``agents`` or ``envs``.
"""
