"""Tests of minutes with real processes, of what quicker ones hold in memory: for `make soak`."""

import os

import pytest

soak = pytest.mark.skipif(not os.environ.get("SHOAL_SOAK"), reason="minutes: SHOAL_SOAK=1")
