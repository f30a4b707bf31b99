"""Models that return more than logits, and functions, as modules that map images to logits."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pyengm.errors import ModelError
from pyengm.utils.check_logits import check_logits

Output = str | int | Callable[[Any], Tensor]


class Classifier(nn.Module):
    """A module that returns the logits of another model.

    Args:
        model: a module, or another function of images (n, ...) in [0, 1]. The parameters and modules of this module are
            those of `model`; a function has none, and the modules that it calls keep their mode.
        output: the place of the logits in what the model returns: a key or the name of an attribute, a position, or a
            function of what it returns. None: a tensor is the logits itself, and of anything else it is `logits`.

    Example:
        >>> network = torch.nn.Linear(4, 3)
        >>> model = pyengm.models.Classifier(lambda x: {"logits": network(x)}, output="logits")
        >>> model(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, model: Callable[..., Any], output: Output | None = None):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        """The logits (n, k) of images x (n, ...).

        Raises:
            ModelError: the model does not return logits in that place.
        """
        return check_logits(self._pick(self.model(x)), len(x))

    def _pick(self, returned: Any) -> Any:
        if callable(self.output):
            return self.output(returned)
        if self.output is None:
            has_logits = "logits" in returned if isinstance(returned, Mapping) else hasattr(returned, "logits")
            return _entry(returned, "logits") if has_logits and not isinstance(returned, Tensor) else returned
        return _entry(returned, self.output)


def _entry(returned: Any, place: str | int) -> Any:
    try:
        if isinstance(place, str) and not isinstance(returned, Mapping):
            return getattr(returned, place)
        return returned[place]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        known = f" of {', '.join(map(str, returned))}" if isinstance(returned, Mapping) else ""
        raise ModelError(
            f"output={place!r}: the model returns a {type(returned).__name__}{known}, which has no such entry"
        ) from error
