import os

import pytest

pytest_plugins = ["playing", "sessions", "sweeping"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Have `pytest -n` give a file to one process, since its fixtures train for real.

    It begins with what trains, so that no process is left with that in the end.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
        for item in items:
            # Several files look at these trainings.
            group = "recorded" if "recorded" in item.fixturenames else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))


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
