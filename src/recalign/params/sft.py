"""`sft`: supervised fine-tuning."""

from typing import Any, Final, Literal

from pydantic import Field

from recalign.params.section import OptimiserParams

NO_WEIGHTS: Final = "none"


class SftParams(OptimiserParams):
    examples: int = Field(gt=0)
    epochs: int = Field(gt=0)
    targets: Literal["all", "last"] = "all"  # params.yaml files from before lack these five
    weights: str = Field(default=NO_WEIGHTS, min_length=1)
    weight_bound: float = Field(default=5.0, ge=1.0)
    new_items: float = Field(default=0.0, ge=0.0, le=0.5)
    strength: float = Field(default=1.0, ge=0.0, le=1.0)

    def told(self) -> dict[str, Any]:
        """The section as training.json keeps it: keys that came later are left out at their default, so that equal
        training keeps equal bytes."""
        later = ("targets", "weights", "weight_bound", "new_items", "strength")
        default = {name: type(self).model_fields[name].default for name in later}
        return {name: value for name, value in self.model_dump().items() if value != default.get(name, ...)}
