import os
import signal

import pytest
from hypothesis import settings

# A shell that runs the tests in the background ignores SIGINT for all that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Beside others, a second thread waits for a core: what takes 1 s alone took up to 25.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same cases in every run; other ones, every night, with `--hypothesis-profile=random`.
settings.register_profile("same", settings.get_profile("ci"))
settings.register_profile("random", settings.get_profile("ci"), derandomize=False)
settings.load_profile("same")

pytest_plugins = ["playing", "sessions", "sweeping"]


# They look at the same trainings, by the fixture `recorded`.
TOGETHER = ("test_gloo.py", "test_in_force.py", "test_learning.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have `pytest -n` give a file to one process, since its fixtures train for real."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    # `--dist loadgroup` of xdist 3.8 divides nothing under pytest 9.2.
    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "together" if path.endswith(TOGETHER) else path

    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    """Begin with what trains, so that no process of several is left with it in the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def own_trainer_state():
    """Take back what building TrainingArguments leaves behind in the process."""
    from accelerate.state import AcceleratorState

    before = dict(os.environ)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
