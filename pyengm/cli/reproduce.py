"""`pyengm reproduce`."""

from pyengm.reproduce import ReproduceConfig, list_tables, reproduce


def reproduce_command(options: ReproduceConfig) -> int:
    """The list of tables, or the runs of one; 1 where a run failed."""
    if options.table is None:
        list_tables()
        return 0
    return 1 if reproduce(options)["failed"] else 0
