"""The app on this machine or as a Space: `python app.py`, the same as `guda app`. docs/reference/settings.md lists
the environment variables it reads."""

import sys

from guda_core.cli import app

if __name__ == "__main__":
    app(["app", *sys.argv[1:]])
