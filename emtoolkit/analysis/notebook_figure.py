"""A figure of matplotlib that a notebook shows as the value of a cell; matplotlib is an extra."""

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure with a picture of itself: a notebook shows a plain `Figure` only after pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
