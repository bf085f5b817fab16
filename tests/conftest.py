import os

import pytest

pytest_plugins = ["sessions", "sweeping"]


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
