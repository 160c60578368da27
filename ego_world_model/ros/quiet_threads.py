"""Import this before torch: idle OpenMP workers sleep instead of spinning.

OpenMP reads the variable once, when torch loads it. A spinning worker between two layers of the
model takes the core that a camera callback needs. A value that the user has set is kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
