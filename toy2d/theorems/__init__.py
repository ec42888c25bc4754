"""Every statement of the theory as a function that returns both sides with their errors.

row               Row: lhs, rhs, standard errors, margin, holds
estimators        binary kl, k-nearest-neighbour KL with its Gaussian control
lower_bound       Theorem 1', Theorem 1 with the condition that makes it one, Corollary 1' (coverage)
path_bound        Theorem 2': KL <= path KL <= (sum w L^2) ||delta theta||^2; the Gaussian pair
local_law         1/2 D'FD <= 1/2 D'GD <= lam* ||D||^2, slope 2
certificate       what the weight of L2 guarantees
paper_theorem_2    the paper's Theorem 2 and Remark 3 as printed
counterexamples   far without drift, drift without order
verify            feeds them all from a run folder: `toy2d verify`
figures           drawn from verify.json only
"""

from toy2d.theorems.row import Row

__all__ = ["Row"]
