"""`python -m lbdist` is `python -m lbdist.run`."""

from lbdist.run import program

program()
