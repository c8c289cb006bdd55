"""Tests of minutes with real processes, of what quicker ones hold in memory: for `make soak`."""

import os

import pytest

SOAKED = bool(os.environ.get("SHOAL_SOAK"))
soak = pytest.mark.skipif(not SOAKED, reason="minutes: SHOAL_SOAK=1")
