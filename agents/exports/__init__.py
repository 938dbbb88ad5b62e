"""Export of trained policies as programs that run without MIRL."""
