"""What is said beside the fastest setting; without what draws tables, which takes time to load."""

from collections.abc import Iterator

import polars as pl

from academic_pretraining.results import method_of


def as_fast_as(leaders: pl.DataFrame) -> Iterator[str]:
    """Say which settings may be as fast as the fastest, for some other reason may choose.

    Args:
        leaders: of `results.leaders`.
    """
    first, *others = leaders.to_dicts()
    said = [
        f"{method_of(row).label} (+{100 * (row['training_days'] / first['training_days'] - 1):.1f}%"
        f", {row['peak_memory_gib']:.1f} GiB)"
        for row in others
    ]
    if said:
        yield (
            f"{method_of(first).label} ({first['peak_memory_gib']:.1f} GiB) is not told apart by "
            f"its time from {', '.join(said)}"
        )
