import inspect
import pickle

import pytest

from academic_pretraining import errors
from academic_pretraining.errors import AcademicPretrainingError, InvalidConfigError

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
every_error = pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)


def test_the_errors_that_a_user_can_meet():
    assert {kind.__name__ for kind in ERRORS} == {
        "AcademicPretrainingError",
        "DeviceBusyError",
        "HardwareMismatchError",
        "InvalidConfigError",
        "InvalidFileError",
        "MeasurementError",
        "NotCompiledError",
        "NoResultsError",
        "TrainingError",
        "UnknownNameError",
    }


@every_error
def test_a_script_can_catch_it_by_the_base(kind):
    assert issubclass(kind, AcademicPretrainingError)
    assert not issubclass(kind, OSError | ValueError)


@every_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_crosses_processes_with_its_message(kind, protocol):
    error = kind("rank 1: a 'quoted' cause\nover two lines (log: /tmp/räng-1.log)")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert str(back) == "rank 1: a 'quoted' cause\nover two lines (log: /tmp/räng-1.log)"
    assert back.args == error.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_invalid_configuration_keeps_each_reason(protocol):
    error = InvalidConfigError("first: do this", "second: do that")
    assert str(error) == "first: do this; second: do that"
    back = pickle.loads(pickle.dumps(error, protocol))
    assert back.reasons == ("first: do this", "second: do that")
    assert str(back) == str(error)


@every_error
def test_it_says_what_it_is_for(kind):
    assert kind.__doc__
    assert kind.__doc__ != (kind.__base__.__doc__ or "")
