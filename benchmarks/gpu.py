"""Every kernel against its twin and what the device can do, and whole decode steps: python benchmarks/gpu.py --help."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

    from benchmarks.on_gpu.main import main

    sys.exit(main())
