from samples import TWO, kept_record

from academic_pretraining.methods import Method, Sharding
from academic_pretraining.results import frame, leaders
from experiments.remarks import as_fast_as

SHARDED = Method(free_lunch=True, sharding=Sharding.ZERO_2)


def test_who_may_be_as_fast_is_said_with_what_else_may_decide():
    def lines(*seconds: float) -> list[str]:
        methods = (
            SHARDED,
            Method(free_lunch=True),
            Method(free_lunch=True, sharding=Sharding.ZERO_1),
        )
        rows = frame(kept_record(m, seconds=s) for m, s in zip(methods, seconds, strict=True))
        return list(as_fast_as(leaders(rows, TWO, "pythia-160m")))

    assert lines(2.0, 3.0, 4.0) == []
    assert lines(2.02, 2.0, 2.05) == [
        "free-lunch (3.0 GiB) is not told apart by its time from free-lunch + ZeRO-2 (+1.0%, 3.0 "
        "GiB), free-lunch + ZeRO-1 (+2.5%, 3.0 GiB)"
    ]
