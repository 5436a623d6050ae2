"""Types of arrays. Importing this imports numpy, which the plugin does without."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
# As argsort and the like return them.
IndexArray = npt.NDArray[np.intp]
