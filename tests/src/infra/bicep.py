"""Prints a Bicep file as JSON; a syntax error ends with its line and column."""

import json
import pathlib
import sys

from pycep import BicepParser

print(json.dumps(BicepParser().parse(file_path=pathlib.Path(sys.argv[1])), default=str))
