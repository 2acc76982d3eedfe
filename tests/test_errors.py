"""Every error says how a command ends."""

from __future__ import annotations

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
