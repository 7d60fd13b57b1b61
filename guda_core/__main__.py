"""`python -m guda_core` is the command line of `guda_core.cli`."""

from guda_core.cli import app

if __name__ == "__main__":
    app(prog_name="guda")
