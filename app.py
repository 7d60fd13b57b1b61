"""The app on this machine or as a Space: `python app.py`, the same as `guda app`. The README lists the environment
variables it reads."""

from guda_core.cli.start import start

if __name__ == "__main__":
    start()
