"""Recurrent cores: LSTM, GRU, multiplicative-integration LSTM, fast weights, windowed attention.

All have the interface of ``core.Core``; ``build.build_core`` builds the one that a config names.
"""
