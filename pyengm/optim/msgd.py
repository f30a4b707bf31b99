"""MSGD: momentum SGD, every example with weight 1."""

from pyengm.optim.base import PerExampleSGD


class MSGD(PerExampleSGD):
    """v <- momentum v + (1/n) sum_i g_i; theta <- theta - lr v. Further arguments are those of torch.optim.SGD.

    Source: Dabouei et al. 2022, Eq. 3.
    """
