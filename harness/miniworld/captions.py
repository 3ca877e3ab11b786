"""What can be said of a scene without being asked: descriptions, and statements about its parts."""

from __future__ import annotations

from harness.miniworld.scenes import Chart, Digits, Print, Scene, Shapes, Table


def kind_of(text: str) -> str:
    """`number` or `word`, for printed text."""
    return "number" if text.isdigit() else "word"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n != 1 else "")


def brief(scene: Scene) -> str:
    """A description in one phrase."""
    match scene:
        case Shapes():
            return f"{plural(len(scene.items), 'shape')}: " + ", ".join(
                f"{i.colour} {i.shape}" for i in scene.items
            )
        case Chart():
            return f"a chart of {plural(len(scene.bars), 'bar')}: " + ", ".join(c for c, _ in scene.bars)
        case Print():
            return f"a printed {kind_of(scene.text)}: {scene.text}"
        case Table():
            return f"a table of {plural(len(scene.rows), 'row')}: " + ", ".join(w for w, _ in scene.rows)
        case Digits():
            return "handwritten digits: " + "".join(map(str, scene.digits))


def statements(scene: Scene) -> list[str]:
    """One sentence about each part; together they say all there is."""
    match scene:
        case Shapes():
            return [f"The {i.colour} {i.shape} is at the {i.place}." for i in scene.items]
        case Chart():
            return [f"The {colour} bar is {value}." for colour, value in scene.bars]
        case Print():
            return [f"The {scene.ink} text says {scene.text}."]
        case Table():
            return [f"The row {word} has {number}." for word, number in scene.rows]
        case Digits():
            return [f"The handwritten digits are {''.join(map(str, scene.digits))}."]


def detailed(scene: Scene) -> str:
    """A description in full sentences."""
    return " ".join(statements(scene))


def facts(scene: Scene) -> list[str]:
    """The phrases a brief description has to contain."""
    return brief(scene).replace(": ", ", ").split(", ")


def fragments(scene: Scene) -> list[tuple[str, str]]:
    """Captions of regions as a pre-training corpus has them: (name of the region, what is there).

    Never a question, and said in a phrase that answers none of them.
    """
    match scene:
        case Shapes():
            parts = []
            for i in scene.items:
                parts += [(i.shape, f"{i.colour}, at the {i.place}"), (i.colour, f"{i.shape}, at the {i.place}")]
                parts += [(i.place, f"{i.colour} {i.shape}"), (f"{i.colour} {i.shape}", f"{i.place} corner")]
            return parts
        case Chart():
            top = max(scene.bars, key=lambda b: b[1])[0]
            return [("highest bar", f"{top} bar"), *((f"{c} bar", f"{v} units") for c, v in scene.bars)]
        case Print():
            return [("text", f"{kind_of(scene.text)} {scene.text}, in {scene.ink}")]
        case Table():
            forward = [(f"row {word}", f"{number} there") for word, number in scene.rows]
            return [*forward, *((f"number {number}", f"{word} row") for word, number in scene.rows)]
        case Digits():
            return [(f"digit {i + 1}", f"{digit} in handwriting") for i, digit in enumerate(scene.digits)]


def region_captions(scene: Scene) -> list[str]:
    """Captions of regions that name the region themselves."""
    return [f"{name}: {text}" for name, text in fragments(scene)]
