"""Leaderboards as LaTeX tables in booktabs style."""

from collections.abc import Iterable
from typing import Final

from leaderboards.boards.row import Row
from leaderboards.boards.sheets import Sheet, View, sheets

_PREAMBLE: Final = "% needs \\usepackage{booktabs} in the preamble"
_DASH: Final = "\0"
_ESCAPES: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "'": "{'}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "–": _DASH,
    "…": r"\dots{}",
    "∞": r"$\infty$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "ε": r"$\epsilon$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
}


def escape(text: str) -> str:
    """Escape text for LaTeX; a letter that fonts may lack becomes its code point, ``[U+4E2D]``."""
    plain = " ".join(text.split())
    # LaTeX would join two hyphens, or two apostrophes, into one character.
    parts = (_ESCAPES.get(letter) or _letter(letter) for letter in plain)
    return "".join(parts).replace("--", "-{}-").replace(_DASH, "--")


def _letter(letter: str) -> str:
    if " " <= letter <= "~":
        return letter
    # Every LaTeX font has the accented letters of western Europe.
    accented = "\u00c0" <= letter <= "\u00ff" and letter.isalpha() and letter not in "ÐÞðþ"
    return letter if accented else f"[U+{ord(letter):04X}]"


def to_latex(rows: Iterable[Row], view: View | None = None) -> str:
    """One ``table`` for each sheet, in percent: best value bold, second underlined, all text escaped."""
    found = [_table(sheet) for sheet in sheets(list(rows), view)]
    return "\n\n".join([_PREAMBLE, *found]) + "\n"


def _table(sheet: Sheet) -> str:
    places = range(len(sheet.columns))
    caption = ". ".join(filter(None, [sheet.title, *sheet.caption.splitlines()]))
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in sheet.columns)}}}",
        r"\toprule",
        _line(escape(column.heading) for column in sheet.columns),
        r"\midrule",
    ]
    for row in range(len(sheet.rows)):
        if row in sheet.rules:
            lines.append(r"\midrule")
        lines.append(_line(_cell(sheet, row, place) for place in places))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _line(cells: Iterable[str]) -> str:
    # LaTeX would read a bracket or a star after the end of a line as its argument.
    return " & ".join(f"{{{cell}}}" if cell.startswith(("[", "*")) else cell for cell in cells) + r" \\"


def _cell(sheet: Sheet, row: int, column: int) -> str:
    text, mark = escape(sheet.text(row, column)), sheet.marks.get((row, column))
    return {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(mark or "", text)
