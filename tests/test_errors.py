"""Every error says how a command ends."""

from __future__ import annotations

import math
import re

import pytest

from maskpro_deploy import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_drawn_in_the_tree_with_its_exit_code(error):
    drawn = dict(re.findall(r"(\w+) +(\d+)", errors.__doc__))
    assert drawn[error.__name__] == str(error.exit_code)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_a_maskpro_error_that_keeps_its_message(error):
    assert issubclass(error, errors.MaskProError)
    assert str(error("what happened")) == "what happened"


def test_wrong_input_ends_with_2_and_a_lacking_machine_with_3():
    assert {e.exit_code for e in CLASSES if issubclass(e, errors.InputError)} == {2}
    assert {e.exit_code for e in CLASSES if issubclass(e, errors.MachineError)} == {3}


def test_a_name_that_is_not_known_is_told_with_those_that_are():
    errors.check_known("--form", None, ("cat", "gqa"))
    errors.check_known("--form", "gqa", ("cat", "gqa"))
    with pytest.raises(errors.ConfigError, match=r"^--form dog is not known. Known: cat, gqa.$"):
        errors.check_known("--form", "dog", iter(("cat", "gqa")))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("cat", "dog"), "--forms dog is not known. Known: cat, gqa."),
        (("cat", "cat"), "--forms cat,cat: name each one once, such as cat,gqa."),
        ((), "--forms is empty: name each one once, such as cat,gqa."),
    ],
)
def test_names_are_known_and_given_once(values, said):
    errors.check_names("--forms", ("gqa", "cat"), ("cat", "gqa"))
    with pytest.raises(errors.ConfigError) as error:
        errors.check_names("--forms", values, ("cat", "gqa"))
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [
        (0, {"least": 1}, "--x 0 is out of range: at least 1."),
        (0.0, {"above": 0}, "--x 0 is out of range: above 0."),
        (6, {"least": 0, "most": 5}, "--x 6 is out of range: at least 0 and at most 5."),
        (1.0, {"least": 0, "below": 1, "note": "0.02 is 2 %"}, "--x 1 is out of range: at least 0 and below 1 (0.02 is 2 %)."),
        (math.nan, {"above": 0}, "--x nan is out of range: above 0."),
        (math.inf, {"least": 0, "below": math.inf}, "--x inf is out of range: at least 0 and below inf."),
        (10_000_000, {"most": 5}, "--x 10000000 is out of range: at most 5."),
    ],
)
def test_a_number_out_of_range_is_told_with_its_bounds(value, bounds, said):
    with pytest.raises(errors.ConfigError) as error:
        errors.check_range("--x", value, **bounds)
    assert str(error.value) == said


def test_numbers_within_their_bounds_and_options_that_were_not_given_pass():
    errors.check_range("--x", None, least=1)
    errors.check_range("--x", 1, least=1, most=1)
    errors.check_range("--x", math.inf, above=0)


@pytest.mark.parametrize(
    ("error", "line", "all_lines"),
    [
        (ValueError("one"), "one", "one"),
        (ValueError("\n  first \n second\n"), "first", "first second"),
        (KeyError(), "KeyError", "KeyError"),
        (RuntimeError("x" * 2000), "x" * 300, "x" * 1000),
    ],
)
def test_errors_of_other_libraries_fit_in_a_line(error, line, all_lines):
    assert errors.first_line(error) == line
    assert errors.in_one_line(error) == all_lines
