"""Do the doors that face strangers stand? `python -m experiments.fuzz --minutes 10` writes assets/benchmarks/fuzz.json.

Every door gets inputs that were made from sound ones by many small changes, or drawn by hypothesis, in a process of its
own with bounded memory and 10 s for each input. An input must be accepted, or refused by an error of the project on one
line. Anything else is a finding: it is kept in a folder outside the project, and `--replay FILE` tries it again.
"""
