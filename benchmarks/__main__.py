"""`python -m benchmarks`: see `benchmarks/scoreboard.py`."""

import sys

# As the command: this process waits and needs no Keras, which importing the package would bring.
sys.argv[0] = "keras-convnets"

from benchmarks.scoreboard import main  # noqa: E402

sys.exit(main())
