"""Images drawn by the base model itself, as the paper does for its styles and its safe set D_S."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from gift_ray.data.drawn import DrawnSource


class Generated(DrawnSource):
    """Draws `num_images` images of the prompts in turn; each image's caption is its prompt."""

    version: ClassVar[int] = 1

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    num_images: int = Field(gt=0)

    def drawn_prompts(self) -> list[str]:
        return [self.prompts[i % len(self.prompts)] for i in range(self.num_images)]
