"""The child process of `on_tensorflow`; see there."""

import sys

from keras_convnets.deploy.child import main

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
