"""Makes the sample makers (`ovf_samples`, …) importable for the tests of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
