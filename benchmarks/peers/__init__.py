"""metaopt beside other libraries of bi-level optimisation, each in an environment of its own.

`python -m benchmarks.peers` makes the environments, has `benchmarks.peers.measure` check in each
that both libraries take the same outer steps and time them in turns, and writes `peers.md`.

`case` has what is run, `peer` what a library has to say, `with_*.py` and `formulas.py` the
libraries, `environment` their installation, `page` the table.
"""
