"""Decoded behaviour of a validation -> a picture: true and decoded values of a few sessions over ten seconds."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.metrics import r2
from pretrain.outputs import Prediction

SESSIONS, SPAN_S, DIMS = 3, 10.0, 3  # at most shown, and the seconds of each session
TRUE, DECODED = "0.45", "tab:red"


def draw_traces(predictions: Sequence[Prediction], title: str) -> bytes:
    """A PNG: a column a session (the first, the middle and the last), a row a dimension, in the recording's units.

    Of a session the ten seconds that hold most evaluated samples are shown, the earliest such: the same at every step.
    """
    shown = chosen(predictions)
    rows = max(min(p.value.shape[1], DIMS) for p in shown)
    figure = Figure(figsize=(5.0 * len(shown), 1.0 + 1.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(shown), squeeze=False, sharex="col")
    for column, prediction in zip(axes.T, shown):
        _draw(column, prediction)
    axes[0, 0].legend(loc="upper right", fontsize="x-small", frameon=False)
    figure.suptitle(title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def chosen(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Up to three sessions, spread over all."""
    places = np.linspace(0, len(predictions) - 1, min(len(predictions), SESSIONS)).round().astype(int)
    return [predictions[place] for place in places]


def busiest(prediction: Prediction) -> slice:
    """The samples of the ten seconds that hold most evaluated ones."""
    times = prediction.time[prediction.evaluated]
    times = times if len(times) else prediction.time
    held = np.searchsorted(times, times + SPAN_S) - np.arange(len(times))
    start = times[held.argmax()]
    return slice(*np.searchsorted(prediction.time, (start, start + SPAN_S)))


def _draw(axes, prediction: Prediction) -> None:
    part = busiest(prediction)
    score = r2(prediction.target[prediction.evaluated], prediction.value[prediction.evaluated])
    axes[0].set_title(f"{prediction.session}  R2 {score:.3f}", fontsize="small")
    time, gaps = prediction.time[part], np.flatnonzero(np.diff(prediction.time[part]) > 1.0) + 1
    for dimension, axis in enumerate(axes):
        if dimension >= prediction.value.shape[1]:
            axis.set_axis_off()
            continue
        for values, color, label in ((prediction.target, TRUE, "true"), (prediction.value, DECODED, "decoded")):
            line = np.insert(values[part, dimension].astype(np.float64), gaps, np.nan)  # no line where nothing was
            axis.plot(np.insert(time, gaps, np.nan), line, color=color, linewidth=1.0, label=label)
        axis.set_ylabel(f"dimension {dimension + 1}", fontsize="small")
        axis.tick_params(labelsize="x-small")
    axes[-1].set_xlabel("time (s)", fontsize="small")
