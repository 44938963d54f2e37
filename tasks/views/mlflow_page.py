"""The view in which MLflow's pages open: the runs by score, each with its verdict and reason.

MLflow's pages keep such a view, made by hand and shared, as a tag of the experiment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NAME = "scores"
# Pixels by column: a run's name and the judge's reason are the long ones.
WIDTHS = {
    "attributes.`Run Name`": 300,
    "metrics.`val_bpb`": 110,
    "metrics.`z`": 90,
    "metrics.`parameters`": 110,
    "tags.`verdict`": 90,
    "tags.`reason`": 480,
    "tags.`status`": 120,
}
CHARTS = ("val_bpb", "train_loss", "champion_bpb", "z")
SECTION = "Model metrics"  # MLflow's own name for metrics without a slash


def _chart(metric: str) -> dict[str, Any]:
    """Bars, which the page replaces by lines for a metric of several steps."""
    return {
        "type": "BAR",
        "uuid": metric,
        "metricKey": metric,
        "displayName": metric,
        "metricSectionId": SECTION,
        "runsCountToCompare": 20,
        "isGenerated": True,
        "deleted": False,
    }


STATE = {
    # Sorted by a score, trials are not folded away under their night.
    "orderByKey": "metrics.`val_bpb`",
    "orderByAsc": True,
    "startTime": "ALL",
    "searchFilter": "",
    "selectedColumns": list(WIDTHS),
    "columnOrder": list(WIDTHS),
    "columnWidths": WIDTHS,
    # Charts show all runs, instead of the first ten. Those below come first, the others follow.
    "runsHiddenMode": "SHOW_ALL",
    "compareRunSections": [
        {
            "uuid": SECTION,
            "name": SECTION,
            "display": True,
            "isGenerated": True,
            "isReordered": True,
        }
    ],
    "compareRunCharts": [_chart(metric) for metric in CHARTS],
}
TAG = {f"mlflow.sharedViewState.{NAME}": json.dumps(STATE)}


def address(url: str, experiment: Mapping[str, Any]) -> str:
    """The runs of this experiment, as MLflow's API describes it: in this view if it has it.

    The plain address of an experiment opens the traces of its LLM calls instead.
    """
    runs = f"{url}/#/experiments/{experiment['experiment_id']}/runs?workflowType=machine_learning"
    has_view = any(tag["key"] in TAG for tag in experiment.get("tags", []))
    return f"{runs}&viewStateShareKey={NAME}" if has_view else runs
