"""The child process of `export_litert`; see there."""

import sys

from keras_convnets.deploy.litert import convert_saved

if __name__ == "__main__":
    try:
        convert_saved(*sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
