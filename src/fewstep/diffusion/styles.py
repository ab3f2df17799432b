"""Two conditions in one label: a class and a style, of which the style may be left open."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

Labels = Int[Tensor, "batch"]


@dataclass(frozen=True)
class Styles:
    """label = class + num_classes * style; the style past the last is "any", the label past the last is "no class".

    Args:
        num_classes, num_styles: of each condition, "any style" and "no class" not counted.

    Raises:
        ValueError: fewer than one class, or fewer than two styles.
    """

    num_classes: int
    num_styles: int

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.num_styles < 2:
            raise ValueError(
                "two conditions need at least one class and two styles, got "
                f"{self.num_classes} classes and {self.num_styles} styles"
            )

    @property
    def num_pairs(self) -> int:
        """Labels of a class and a style: 0..num_pairs - 1; then come those of a class of any style."""
        return self.num_classes * self.num_styles

    @property
    def num_labels(self) -> int:
        """All labels but "no class", which is this number."""
        return self.num_pairs + self.num_classes

    def class_of(self, label: Labels) -> Labels:
        """The class of each label that has one."""
        return label % self.num_classes

    def style_of(self, label: Labels) -> Labels:
        """The style of each label that has a class; num_styles is any."""
        return label // self.num_classes

    def of_any_style(self, label: Labels) -> Labels:
        """The labels without their style; "no class" stays."""
        return (self.num_pairs + self.class_of(label)).where(label < self.num_labels, label)
