"""Images of the size of usual ones, to be measured with: some thousand files in a few layers.

Sizes and contents are drawn like those of a distribution's files: many small texts, fewer programs and libraries, a few
large ones; together they compress to half. Always the same, for the generator starts from the same seed.
"""

import random

import layer
from layer import directory, file, program, symlink

KIB = 1024
MIB = 1024 * KIB

# Layers to go on top of busybox, each with so many directories of so many files. Unpacked, with busybox, 110 MiB in four layers.
FEW = (("usr/share/base", 96, 24), ("opt/platform", 64, 24), ("srv/application", 40, 16))
# And 200 MB in eight.
MANY = (
    ("usr/share/base", 96, 24),
    ("usr/lib/runtime", 72, 24),
    ("opt/platform", 64, 24),
    ("opt/tools", 40, 24),
    ("srv/application", 40, 16),
    ("srv/assets", 48, 16),
    ("etc/site", 12, 12),
)


def layers(trees: tuple[tuple[str, int, int], ...]) -> list[list[layer.Entry]]:
    generator = random.Random(20240102)
    contents = Contents(generator)
    return [list(tree(root, directories, files, generator, contents)) for root, directories, files in trees]


def tree(root: str, directories: int, files: int, generator: random.Random, contents: "Contents"):
    parents = root.split("/")
    yield from (directory("/".join(parents[: depth + 1])) for depth in range(len(parents)))
    for number in range(directories):
        path = f"{root}/part-{number:03}"
        yield directory(path)
        for index in range(files):
            if index % 12 == 11:
                yield symlink(f"{path}/link-{index:02}", f"text-{index - 1:02}")
            elif index % 12 == 5:
                # Most programs are small and a few are large: a median of 60 KiB and a long tail.
                yield program(f"{path}/program-{index:02}", contents.binary(size(generator, 60 * KIB, 1.4, 8 * MIB)))
            else:
                yield file(f"{path}/text-{index:02}", contents.text(size(generator, 6 * KIB, 1.3, MIB)))


def size(generator: random.Random, median: int, spread: float, most: int) -> int:
    return min(most, int(median * generator.lognormvariate(0, spread)))


class Contents:
    """Pieces of two supplies that are longer than a compressor looks back."""

    def __init__(self, generator: random.Random) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["".join(generator.choices(letters, k=generator.randint(2, 10))) for _ in range(4000)]
        text = " ".join(generator.choices(words, cum_weights=[4000 * rank**0.4 for rank in range(1, 4001)], k=1_500_000))
        self.generator = generator
        self.texts = text.encode()
        # Machine code: half of it repeats what stood shortly before.
        blocks = [generator.randbytes(generator.randint(4, 24)) for _ in range(20_000)]
        self.binaries = b"".join(
            generator.choice(blocks[:500]) if generator.random() < 0.6 else generator.choice(blocks) for _ in range(1_000_000)
        )

    def text(self, length: int) -> bytes:
        return self.piece(self.texts, length)

    def binary(self, length: int) -> bytes:
        return self.piece(self.binaries, length)

    def piece(self, supply: bytes, length: int) -> bytes:
        start = self.generator.randrange(len(supply) - length)
        return supply[start : start + length]
