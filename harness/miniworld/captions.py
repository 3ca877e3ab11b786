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


def fragments(scene: Scene) -> list[str]:
    """Captions of regions, as a pre-training corpus has them: what stands where, never a question."""
    match scene:
        case Shapes():
            places = [f"{i.place}: {i.colour} {i.shape}" for i in scene.items]
            inks = [f"{i.shape} in {i.colour}" for i in scene.items]
            return [*places, *inks, *(f"{i.colour} {i.shape} at {i.place}" for i in scene.items)]
        case Chart():
            top = max(scene.bars, key=lambda b: b[1])[0]
            return [f"highest bar: {top}", *(f"{colour} bar: {value}" for colour, value in scene.bars)]
        case Print():
            return [f"{scene.ink} {kind_of(scene.text)} {scene.text}"]
        case Table():
            forward = [f"row {word}: {number}" for word, number in scene.rows]
            return [*forward, *(f"number {number}: row {word}" for word, number in scene.rows)]
        case Digits():
            return [f"digit {i + 1}: {digit}" for i, digit in enumerate(scene.digits)]
