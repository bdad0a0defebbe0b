"""What a user reads who asks for a recipe that there cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.recipes.resolving import recipe_for


def refused(family: str = "cnn", overrides: Sequence[str] = (), **choice: Any) -> str:
    """The message with which `recipe_for` refuses; one line, and short enough to be read."""
    with pytest.raises(UserError) as error:
        recipe_for(family, overrides, **choice)
    message = str(error.value)
    assert "\n" not in message
    return message
