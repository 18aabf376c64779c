"""Defines the rows of the table of `autoencoders.py`: what is trained, its code, and its target."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of the table: the options `words` of `cyclic train`, which are empty for MONAI.

    The code has `numbers` numbers for each block of `block` × `block` pixels, or for the whole image.
    """

    words: str
    goal: str
    numbers: int
    block: int | None = None
    fraction: float = 1.0
    epochs: int | None = None  # None: as many as fit into the time

    @property
    def is_monai(self) -> bool:
        return not self.words

    @property
    def limit(self) -> str:
        return f"PCA-{self.numbers}" if self.block is None else f"{self.numbers}-of-{self.block**2} blocks"

    def shape(self, size: int) -> tuple[int, int]:
        """The number of feature maps of the code and their side, which is 1 for a vector."""
        if self.block:
            return self.numbers, size // self.block
        return (self.numbers // 49, 7) if self.is_monai else (self.numbers, 1)

    def is_possible(self, size: int) -> bool:
        """Whether the row can be trained at this size, since MONAI can only halve images."""
        return not self.is_monai or size / self.shape(size)[1] in (2**halvings for halvings in range(1, 9))


RESIDUAL = "better than all rows above, and than MONAI with equal code and time"
ROWS = {
    "linear-40": Row("--arch linear", "≤ 1.05 ×; ambition ≤ 0.95 ×", 128, fraction=0.4, epochs=1),
    "linear-100": Row("--arch linear", "≤ 1.02 ×; ambition ≤ 0.95 ×", 128, epochs=1),
    "conv-15": Row("--arch conv", "MSE ≤ 0.0010; ambition ≤ 1 ×", 4, 4, fraction=0.15, epochs=3),
    "conv-100": Row("--arch conv", "≤ 1 ×; ambition ≤ 0.7 ×", 4, 4, epochs=10),
    "deep-100": Row("--arch deep", "≤ 1.1 ×; ambition ≤ 0.8 ×", 256, epochs=15),
    "vae-100": Row("--arch vae", "≤ 1.5 ×, most dimensions used", 256, epochs=15),
    "vae-256": Row("--arch vae", "reference for residual-256", 256),
    "residual-256": Row("--arch residual --set model.latent=256", RESIDUAL, 256),
    "residual-245": Row("--arch residual --set model.latent=245", RESIDUAL, 245),
    "monai-5x7x7": Row("", "", 245),
    "residual-4x28x28": Row("--arch residual --set model.latent=4 --set model.reduction=8", RESIDUAL, 4, 8),
    "monai-4x28x28": Row("", "", 4, 8),
}  # rows with equal time are neighbours, so that --pairs runs them together
