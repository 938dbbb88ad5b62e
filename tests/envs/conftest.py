"""Makes the helper modules beside this file importable, also in the worker processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
