"""`python -m experiments.memory`: see `experiments.memory.fake_step`."""

from experiments.memory.fake_step import main

if __name__ == "__main__":
    main()
