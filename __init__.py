"""MIRL: reinforcement-learning agents whose networks fuse observation and goal by multiplicative interactions.

The repository's root *is* the import package ``mirl``: ``agents/`` is ``mirl.agents``, ``train.py`` is ``mirl.train``
(pyproject.toml holds the mapping). Import ``mirl.…`` everywhere, never ``agents`` or ``envs`` alone.
"""
