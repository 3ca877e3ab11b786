"""Descriptions of a scene, and the statements they are made of."""

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
            return f"a chart of {plural(len(scene.bars), 'bar')}: " + ", ".join(f"{c} bar" for c, _ in scene.bars)
        case Print():
            return f"a printed {kind_of(scene.text)}: {scene.text}"
        case Table():
            return f"a table of {plural(len(scene.rows), 'row')}: " + ", ".join(f"row {w}" for w, _ in scene.rows)
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
