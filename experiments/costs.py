"""`python -m experiments.costs`: precompute, query and storage of every method, side by side."""

from experiments.commands import measuring

main = measuring("cost_measurement", "Measure what each method costs on this machine, all in one run.")

if __name__ == "__main__":
    main()
