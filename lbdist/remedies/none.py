"""No remedy: the plain SB and LB training of Keskar et al., section 2."""

from lbdist.remedies.base import Remedy as NoRemedy

__all__ = ["NoRemedy"]
