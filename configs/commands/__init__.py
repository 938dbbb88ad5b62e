"""Words of the command line: their syntax, and the pages of ``--help``."""
