"""How far a mean of a few repeated steps may be from the truth."""

# Student's t: 97.5th percentile at 1, 2, ... degrees of freedom, to four digits.
_STUDENT = (
    *(12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11, 2.101, 2.093, 2.086),
    *(2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.959964


def half_width(standard_error: float, degrees_of_freedom: int) -> float:
    """Half the width of a 95% interval about a mean, in the unit of its standard error.

    Few repeated values may be alike by chance, and their standard error too small: Student's t
    allows for that.

    Args:
        standard_error: of the mean.
        degrees_of_freedom: values behind it, less the means that were taken of them; 0 where the
            error is not estimated from them but assumed.
    """
    if not degrees_of_freedom:
        return _NORMAL * standard_error
    if degrees_of_freedom <= len(_STUDENT):
        return _STUDENT[degrees_of_freedom - 1] * standard_error
    # Abramowitz and Stegun, 26.7.5; its next term is below 0.0002 here.
    z, degrees = _NORMAL, degrees_of_freedom
    first = (z**3 + z) / (4 * degrees)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return (z + first + second) * standard_error
