"""`python -m experiments.intervals`: how often GUDA's 95% intervals cover the value of a full budget."""

from experiments.commands import measuring

main = measuring("coverage", "Measure how often GUDA's intervals cover the value of a full budget.")

if __name__ == "__main__":
    main()
