"""An event and its onset in words, for the terminal and for the report."""

from emtoolkit.analysis.curves import CHANGED
from emtoolkit.analysis.onset import Onset, Point
from emtoolkit.analysis.onset_results import Event
from emtoolkit.evaluation.metrics import DEFINITIONS


def event_text(event: Event) -> str:
    """Which curve crosses which value."""
    # As it was given: a threshold of 0.0005 is not 0.1 points.
    value = f"{100 * event.threshold:g} points" if is_share(event.metric) else f"{event.threshold:g}"
    if event.kind == "rise":
        return f"{event.metric} {'falls' if event.falls else 'rises'} since step 0 by more than {value}"
    return f"{event.metric} is {'below' if event.falls else 'above'} {value}"


def onset_sentence(onset: Onset, event: Event) -> str:
    """The bracket, or the evidence that there is none, with the events after the onset."""
    last = onset.last
    if onset.status == "not_seen":
        at_end = f"{value_text(last.value, event.metric)} ({limits_text(last, event.metric)}) at the end"
        until = "no step excludes it" if onset.bracket.lower is None else f"excluded up to step {onset.bracket.lower}"
        return f"no onset by step {last.step}: {until}; {at_end}"
    if onset.status == "before_first":
        where = f"before the first checkpoint (step {onset.first_step})"
        text = where if onset.bracket.upper == onset.first_step else f"{where} or by step {onset.bracket.upper}"
    else:
        text = f"in {onset.bracket}"
    if onset.reversal is not None:
        text += f"; reversal in {onset.reversal}"
    if onset.fall is not None:
        peak, end = (value_text(point.value, event.metric) for point in (onset.fall.peak, onset.fall.last))
        text += f"; falls from {peak} at step {onset.fall.peak.step} (shown by {onset.fall.shown_at}) to {end}"
    return text


def is_share(metric: str) -> bool:
    """Whether the metric is a share, which is written in percent or points."""
    return metric in DEFINITIONS or metric == CHANGED


def value_text(value: float, metric: str) -> str:
    """A value with its unit."""
    return f"{number_text(value, metric)} points" if is_share(metric) else number_text(value, metric)


def number_text(value: float, metric: str) -> str:
    """A value without its unit, or a dash for NaN."""
    if value != value:
        return "—"
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4g}"


def limits_text(point: Point, metric: str) -> str:
    """Both limits, or a dash for none."""
    if point.limits.low != point.limits.low:
        return "—"
    return f"{number_text(point.limits.low, metric)} to {number_text(point.limits.high, metric)}"
