"""MSGD: momentum SGD, every example with weight 1."""

from pyengm.optim.base import PerExampleSGD
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer


@register_optimizer
class MSGD(PerExampleSGD):
    """v <- momentum v + (1/n) sum_i g_i; theta <- theta - lr v.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        sgd_options: The other arguments of torch.optim.SGD.

    References:
        Dabouei et al. 2022, Eq. 3.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> opt = pyengm.MSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> stats = opt.backward(losses)
        >>> opt.step()
    """

    info = OptimizerInfo(name="msgd", title="momentum SGD")
