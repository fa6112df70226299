"""What an estimator without memory saves: nothing."""

from __future__ import annotations

from typing import Any


class Stateless:
    """`state_dict` and `load_state_dict` of an estimator that keeps nothing between calls."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept an empty dict; anything else belongs to another estimator."""
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}; "
                f"it was written by another estimator."
            )
