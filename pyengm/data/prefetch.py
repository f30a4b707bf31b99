"""Work done ahead of its use by background threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2, threads: int = 1
) -> Generator[Result]:
    """Calls a function on items in background threads; closing the iterator ends the threads.

    Args:
        function: called on each item.
        items: in the order of the results.
        ahead: the number of results that are computed before their use.
        threads: the number of threads.

    Yields:
        function(item), in order; an error of the function is raised where its result would come.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
